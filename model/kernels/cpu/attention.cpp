// Causal attention in bfloat16 over rows that lie end to end, forward and backward. Rows may begin alike: what several of
// them share is computed once, as part of the first. Threads split rows and key heads; no bit depends on their number, nor
// a row's result on the other rows.
//
// Legend: U tokens, T positions of all rows, H heads of queries, K of keys, G = H / K, Q width of queries and keys, V of values.
// A word is two bfloat16 that follow each other along the summed axis.

#include <omp.h>

#include <vector>

#include "simd.hpp"

using namespace parl;

namespace {

typedef uint32_t word;
constexpr int M = 6, N = 4, COLUMNS = N * VL;  // a tile of products: 24 of 32 vectors accumulate
constexpr int BLOCK = 8 * M;                   // queries whose weights the backward pass holds at a time

struct Rows {
    int U, R, H, K, Q, V, threads;
    const int *starts, *own, *place;  // [R + 1] in T; [R] tokens of the row that earlier rows computed; [T] -> U
    float scale;
    int G() const { return H / K; }
};

inline vf dot2(vf sum, iv a, iv b) {
#if defined(__AVX512BF16__)
    return vf(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
#else
    const iv second = iv{} + int32_t(0xffff0000);
    return fma(vf(a & second), vf(b & second), fma(vf(a << 16), vf(b << 16), sum));
#endif
}

// exp(x) of x <= 0, to 2e-7; 0 below -87.
inline vf exp_below(vf x) {
#if defined(__AVX512F__)
    const __m512 y = _mm512_max_ps(__m512(x) * _mm512_set1_ps(1.44269504f), _mm512_set1_ps(-126.0f));
    const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf r = vf(_mm512_sub_ps(y, whole));  // 2^r, |r| <= 1/2: Taylor's coefficients of 2^r
    vf p = vf{} + 1.5403530e-4f;
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = fma(p, r, vf{} + c);
    return vf(_mm512_scalef_ps(__m512(p), whole));
#else
    return exp_of(x);
#endif
}

// Bits of bfloat16, rounded to nearest, in the low halves.
inline iv rounded(vf v) {
#if defined(__AVX512BF16__)
    return iv(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(__m512(v)))));
#else
    iv bits = iv(v);
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
#endif
}
inline void store_rounded(bf16* p, vf v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(__m512(v))));
#else
    iv bits = rounded(v);
    for (int i = 0; i < VL; i++) p[i].bits = uint16_t(bits[i]);
#endif
}

// c [M][n] = a b over `depth` words: a(m, i) at a[m] + i step, b [depth][n]; n a multiple of VL.
template <int W>
inline void tile(const word* const* a, long step, const word* b, long ldb, int depth, float* c, long ldc) {
    vf sums[M][W] = {};
    for (int i = 0; i < depth; i++) {
        iv columns[W];
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) columns[w] = *reinterpret_cast<const iv*>(b + i * ldb + w * VL);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const iv one = iv{} + int32_t(a[m][i * step]);
#pragma GCC unroll 4
            for (int w = 0; w < W; w++) sums[m][w] = dot2(sums[m][w], one, columns[w]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) storev(c + m * ldc + w * VL, sums[m][w]);
}
void product(const word* const* a, long step, const word* b, long ldb, int depth, int n, float* c, long ldc) {
    for (int j = 0; j < n; j += COLUMNS) {
        switch (std::min(N, (n - j) / VL)) {
            case 4: tile<4>(a, step, b + j, ldb, depth, c + j, ldc); break;
            case 3: tile<3>(a, step, b + j, ldb, depth, c + j, ldc); break;
            case 2: tile<2>(a, step, b + j, ldb, depth, c + j, ldc); break;
            default: tile<1>(a, step, b + j, ldb, depth, c + j, ldc);
        }
    }
}

inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// [width / 2][n] words of n rows: pairs along a row's width. Columns up to ld are zero.
template <class Row>
void pack_across(Row row, int n, int width, word* to, int ld) {
    for (int j = 0; j < n; j++) {
        const word* from = reinterpret_cast<const word*>(row(j));
        for (int i = 0; i < width / 2; i++) to[long(i) * ld + j] = from[i];
    }
    for (int i = 0; i < width / 2; i++) std::memset(to + long(i) * ld + n, 0, sizeof(word) * (ld - n));
}
// [n / 2][ld] words: pairs of neighbouring rows. What is missing is zero.
template <class Row>
void pack_along(Row row, int n, int width, word* to, int ld) {
    for (int j = 0; j < n; j += 2) {
        const bf16 *one = row(j), *two = j + 1 < n ? row(j + 1) : nullptr;
        word* out = to + long(j / 2) * ld;
        for (int i = 0; i < width; i++) out[i] = one[i].bits | (two ? word(two[i].bits) << 16 : 0);
        std::memset(out + width, 0, sizeof(word) * (ld - width));
    }
}

struct Room {
    std::vector<word> keys, values, along, queries, grads, weights, slopes;
    std::vector<float> logits, back, sums;
    std::vector<bf16> rows;
    template <class X>
    static X* at(std::vector<X>& v, size_t n) {
        if (v.size() < n) v.resize(n);
        return v.data();
    }
};
Room& room() {
    static thread_local Room r;
    return r;
}

// One row and key head: its queries are numbered m = position G + head, from the first that is the row's own.
struct Task {
    const Rows& s;
    int row, head, n, first, count;  // positions, those of earlier rows, queries
    Task(const Rows& rows, int index) : s(rows), row(index / rows.K), head(index % rows.K) {
        n = s.starts[row + 1] - s.starts[row];
        first = s.own[row];
        count = (n - first) * s.G();
    }
    int token(int position) const { return s.place[s.starts[row] + position]; }
    int position(int m) const { return first + m / s.G(); }
    long query(int m) const { return long(token(position(m))) * s.H + head * s.G() + m % s.G(); }
    long key(int position) const { return long(token(position)) * s.K + head; }
};

void forward(const Task& t, const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse) {
    Room& r = room();
    const int Q = t.s.Q, V = t.s.V, ld = up_to(t.n, COLUMNS), wide = up_to(V, VL);
    word* keys = r.at(r.keys, size_t(Q / 2) * ld);
    word* values = r.at(r.along, size_t((t.n + 1) / 2) * wide);
    float *logits = r.at(r.logits, size_t(M) * ld), *sums = r.at(r.sums, size_t(M) * wide);
    bf16* weights = r.at(r.rows, size_t(M) * ld);
    pack_across([&](int j) { return k + t.key(j) * Q; }, t.n, Q, keys, ld);
    pack_along([&](int j) { return v + t.key(j) * V; }, t.n, V, values, wide);
    for (int m0 = 0; m0 < t.count; m0 += M) {
        const int used = std::min(M, t.count - m0), seen = t.position(m0 + used - 1) + 1, all = up_to(seen, VL);
        const word *a[M], *p[M];
        for (int m = 0; m < M; m++) {
            a[m] = reinterpret_cast<const word*>(q + t.query(m0 + std::min(m, used - 1)) * Q);
            p[m] = reinterpret_cast<const word*>(weights + size_t(m) * ld);
        }
        product(a, 1, keys, ld, Q / 2, all, logits, ld);
        float totals[M];
        for (int m = 0; m < used; m++) {
            float* x = logits + size_t(m) * ld;
            const int mine = t.position(m0 + m) + 1;
            for (int j = mine; j < all; j++) x[j] = -1e30f;
            vf most = vf{} - INFINITY, sum = {};
            for (int j = 0; j < all; j += VL) {
                vf one = loadv(x + j);
                most = one > most ? one : most;
            }
            const float top = widest(most);
            for (int j = 0; j < all; j += VL) {
                vf one = exp_below((loadv(x + j) - top) * t.s.scale);
                sum += one;
                store_rounded(weights + size_t(m) * ld + j, one);
            }
            totals[m] = total(sum);
            lse[t.query(m0 + m)] = top * t.s.scale + std::log(totals[m]);
        }
        product(p, 1, values, wide, (seen + 1) / 2, wide, sums, wide);
        for (int m = 0; m < used; m++)
            for (int d = 0; d < V; d += VL)
                storef(out + t.query(m0 + m) * V + d, loadv(sums + size_t(m) * wide + d) / totals[m], V - d);
    }
}

// dq of the row's own tokens; dk [n][Q] and dv [n][V] of the row, in float32.
void backward(const Task& t, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
              const float* delta, bf16* dq, float* dk, float* dv, long ldk, long ldv) {
    Room& r = room();
    const int Q = t.s.Q, V = t.s.V, ld = up_to(t.n, COLUMNS), wide = up_to(std::max(Q, V), VL);
    word *keys = r.at(r.keys, size_t(Q / 2) * ld), *values = r.at(r.values, size_t(V / 2) * ld);
    word* along = r.at(r.along, size_t((t.n + 1) / 2) * wide);
    word *queries = r.at(r.queries, size_t(BLOCK / 2) * wide), *grads = r.at(r.grads, size_t(BLOCK / 2) * wide);
    word *weights = r.at(r.weights, size_t(BLOCK / 2) * ld), *slopes = r.at(r.slopes, size_t(BLOCK / 2) * ld);
    float *logits = r.at(r.logits, size_t(M) * ld), *back = r.at(r.back, size_t(M) * ld), *sums = r.at(r.sums, size_t(M) * wide);
    bf16* rows = r.at(r.rows, size_t(M) * ld);
    pack_across([&](int j) { return k + t.key(j) * Q; }, t.n, Q, keys, ld);
    pack_across([&](int j) { return v + t.key(j) * V; }, t.n, V, values, ld);
    pack_along([&](int j) { return k + t.key(j) * Q; }, t.n, Q, along, wide);
    for (int b0 = 0; b0 < t.count; b0 += BLOCK) {
        const int size = std::min(BLOCK, t.count - b0), reach = t.position(b0 + size - 1) + 1, edge = up_to(reach, VL);
        for (int m0 = 0; m0 < size; m0 += M) {
            const int used = std::min(M, size - m0), seen = t.position(b0 + m0 + used - 1) + 1, all = up_to(seen, VL);
            const word *a[M], *d[M], *p[M];
            for (int m = 0; m < M; m++) {
                const long at = t.query(b0 + m0 + std::min(m, used - 1));
                a[m] = reinterpret_cast<const word*>(q + at * Q);
                d[m] = reinterpret_cast<const word*>(dout + at * V);
                p[m] = reinterpret_cast<const word*>(rows + size_t(m) * ld);
            }
            product(a, 1, keys, ld, Q / 2, all, logits, ld);
            product(d, 1, values, ld, V / 2, all, back, ld);
            for (int m = 0; m < M; m += 2) {
                word *w = weights + size_t(m0 + m) / 2 * ld, *s = slopes + size_t(m0 + m) / 2 * ld;
                for (int j = 0; j < edge; j += VL) {
                    iv pair[2] = {}, slope[2] = {};
                    for (int i = 0; i < 2 && j < all; i++) {
                        if (m + i >= used) {
                            store_rounded(rows + size_t(m + i) * ld + j, vf{});
                            continue;
                        }
                        const long at = t.query(b0 + m0 + m + i);
                        const int mine = t.position(b0 + m0 + m + i) + 1;
                        const size_t place = size_t(m + i) * ld + j;
                        vf weight = exp_below(loadv(logits + place) * t.s.scale - lse[at]);
                        if (j + VL > mine)
                            for (int l = std::max(mine - j, 0); l < VL; l++) weight[l] = 0;
                        const vf ds = weight * (loadv(back + place) - delta[at]) * t.s.scale;
                        pair[i] = rounded(weight);
                        slope[i] = rounded(ds);
                        store_rounded(rows + place, ds);
                    }
                    *reinterpret_cast<iv*>(w + j) = pair[0] | (pair[1] << 16);
                    *reinterpret_cast<iv*>(s + j) = slope[0] | (slope[1] << 16);
                }
            }
            product(p, 1, along, wide, (seen + 1) / 2, up_to(Q, VL), sums, wide);
            for (int m = 0; m < used; m++)
                for (int i = 0; i < Q; i += VL)
                    storef(dq + t.query(b0 + m0 + m) * Q + i, loadv(sums + size_t(m) * wide + i), Q - i);
        }
        pack_along([&](int m) { return q + t.query(b0 + m) * Q; }, size, Q, queries, wide);
        pack_along([&](int m) { return dout + t.query(b0 + m) * V; }, size, V, grads, wide);
        for (int j0 = 0; j0 < reach; j0 += M) {
            const int used = std::min(M, reach - j0);
            const word *w[M], *s[M];
            for (int j = 0; j < M; j++) w[j] = weights + j0 + std::min(j, used - 1), s[j] = slopes + j0 + std::min(j, used - 1);
            auto add = [&](const word* const* a, const word* b, int width, float* to, long ldt) {
                product(a, ld, b, wide, (size + 1) / 2, up_to(width, VL), sums, wide);
                for (int j = 0; j < used; j++)
                    for (int i = 0; i < width; i += VL) {
                        float* at = to + (j0 + j) * ldt + i;
                        storef(at, loadf(at, width - i) + loadv(sums + size_t(j) * wide + i), width - i);
                    }
            };
            add(w, grads, V, dv, ldv);
            add(s, queries, Q, dk, ldk);
        }
    }
}

Rows described(const int* ints, const int* const* layout, float scale) {
    return {ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6], layout[0], layout[1], layout[2], scale};
}

}  // namespace

extern "C" {

// ints: U, R, H, K, Q, V, threads. layout: starts, own, place. q [U][H][Q], k [U][K][Q], v [U][K][V], out [U][H][V], lse [U][H].
void parl_attend(const int* ints, const int* const* layout, float scale, const bf16* q, const bf16* k, const bf16* v, bf16* out,
                 float* lse) {
    const Rows s = described(ints, layout, scale);
#pragma omp parallel for schedule(dynamic, 1) num_threads(s.threads)
    for (int i = 0; i < s.R * s.K; i++) forward(Task(s, i), q, k, v, out, lse);
}

// delta [U][H] = dout · out; room [T][K][Q + V], zero.
void parl_attend_backward(const int* ints, const int* const* layout, float scale, const bf16* q, const bf16* k, const bf16* v,
                          const bf16* dout, const float* lse, const float* delta, float* room, bf16* dq, bf16* dk, bf16* dv) {
    const Rows s = described(ints, layout, scale);
    const long T = s.starts[s.R], ldk = long(s.K) * s.Q, ldv = long(s.K) * s.V;
    float* values = room + T * ldk;
    std::vector<int> first(s.U, -1), next(T, -1);  // positions of each token, rising
    for (long i = T - 1; i >= 0; i--) next[i] = first[s.place[i]], first[s.place[i]] = int(i);
#pragma omp parallel num_threads(s.threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < s.R * s.K; i++) {
            const Task t(s, i);
            const long at = s.starts[t.row];
            backward(t, q, k, v, dout, lse, delta, dq, room + at * ldk + t.head * s.Q, values + at * ldv + t.head * s.V, ldk, ldv);
        }
#pragma omp for schedule(static)
        for (int u = 0; u < s.U; u++) {
            auto gather = [&](const float* from, long width, bf16* to) {
                for (long d = 0; d < width; d += VL) {
                    const int left = int(std::min<long>(VL, width - d));
                    vf sum = {};
                    for (int i = first[u]; i >= 0; i = next[i]) sum += loadf(from + i * width + d, left);
                    storef(to + u * width + d, sum, left);
                }
            };
            gather(room, ldk, dk);
            gather(values, ldv, dv);
        }
    }
}
}
