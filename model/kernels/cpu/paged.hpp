// Attention over a paged cache of keys and values, for the query heads that share them.
//
// A page holds P positions of one key-value head, in words: keys [words of a key][P], then values [P / S][wide]. So both
// products are those of words.hpp, with positions as outputs first and the value's elements then. The softmax runs over
// blocks of KB positions at multiples of KB, whatever is fed with what: no bit depends on who shares a block. Where numbers
// are bfloat16, weights are rounded to it before they meet the values, and not where they are summed, as in torch.

#pragma once

#include "words.hpp"

namespace parl {

constexpr int P = 16;        // positions a page
constexpr int KB = 128;      // positions a block
constexpr float NONE = -1e30f;

template <class C>
struct Layout {  // of one key-value head
    int dim;
    int words() const { return (dim + C::S - 1) / C::S; }
    int wide() const { return int(align_up(dim, 2 * VL)); }
    long keys() const { return long(words()) * P; }
    long size() const { return keys() + long(P / C::S) * wide(); }

    void write(word* page, int slot, const typename C::Number* key, const typename C::Number* value) const {
        using A = typename C::Number;
        word *k = page + slot;
        A* v = reinterpret_cast<A*>(page + keys() + long(slot / C::S) * wide()) + slot % C::S;
        for (int u = 0; u < words(); u++) std::memcpy(k + u * P, key + u * C::S, 4);
        for (int d = 0; d < dim; d++) v[d * C::S] = value[d];
    }
};

struct AttendRoom {
    Room<word> query;
    Room<float> score, out, state;
};

// out[R][2 VL] = out factor + weights times the values of n pages at v.
template <class C, int R>
__attribute__((noinline)) void weigh(const word* e, const float* factor, const word* const* page, int n, long offset,
                                     long wide, float* out) {
    vf acc[R][2];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) acc[r][j] = loadv(out + r * wide + j * VL) * factor[r];
    for (int b = 0; b < n; b++) {
        const word *v = page[b] + offset, *x = e + b * (P / C::S);
#pragma GCC unroll 2
        for (int u = 0; u < P / C::S; u++) {
            const iv a0 = held(loadw(v + u * wide)), a1 = held(loadw(v + u * wide + VL));
#pragma GCC unroll 14
            for (int r = 0; r < R; r++) {
                const iv w = held(spread(x[r * KB + u]));
                acc[r][0] = C::step(acc[r][0], w, a0);
                acc[r][1] = C::step(acc[r][1], w, a1);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) storev(out + r * wide + j * VL, acc[r][j]);
}
template <class C, int R = ROWS>
inline void weigh_rows(int rows, const word* e, const float* factor, const word* const* page, int n, long offset,
                       long wide, float* out) {
    if constexpr (R > 1)
        if (rows < R) return weigh_rows<C, R - 1>(rows, e, factor, page, n, offset, wide, out);
    weigh<C, R>(e, factor, page, n, offset, wide, out);
}

struct Span {  // of the positions that a row sees
    int low, high;
};

// 2^x for x <= 0, to 2e-7; 2^-126 for what is less.
inline vf exp2_of(vf x) {
    const vf low = vf{} - 126.0f, whole = vf{} + 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded
    x = x > low ? x : low;
    const vf t = x + whole, r = x - (t - whole);
    vf p = vf{} + 1.33335581e-3f;
    for (float c : {9.61812910e-3f, 5.55041086e-2f, 2.40226507e-1f, 6.93147180e-1f, 1.0f}) p = fma(p, r, vf{} + c);
    return vf(iv(p) + (iv(t) << 23));
}

// One row's scores [KB] of the block at position `base` become weights, in place as numbers; updates its largest score and
// its sums, returns what earlier weights are to be multiplied with. scale: of scores, to powers of 2.
template <class A>
inline float soften(float* score, int base, Span seen, float scale, float& top, float* sums) {
    static const iv lanes = [] {
        iv v;
        for (int i = 0; i < VL; i++) v[i] = i;
        return v;
    }();
    constexpr int N = KB / VL;
    vf s[N], most = vf{} + top;
    for (int j = 0; j < N; j++) s[j] = loadv(score + j * VL) * scale;
    if (seen.high < base + KB - 1 || seen.low > base)
        for (int j = 0; j < N; j++) {
            const iv at = lanes + (base + j * VL);
            s[j] = (at <= seen.high) & (at >= seen.low) ? s[j] : vf{} + 2 * NONE;
        }
    for (int j = 0; j < N; j++) most = most > s[j] ? most : s[j];
    const float high = widest(most);
    const vf factor = exp2_of(vf{} + (top - high));
    vf sum = loadv(sums) * factor;
    A* out = reinterpret_cast<A*>(score);
    for (int j = 0; j < N; j++) {
        const vf e = exp2_of(s[j] - high), weight = s[j] > NONE ? e : vf{};
        sum += weight;
        store(out + j * VL, weight, VL);
    }
    storev(sums, sum);
    top = high;
    return factor[0];
}

// Rows of queries in tiles [words of a key][ROWS, the last with what is left], at rising positions pos; room.out becomes
// [rows][wide].
template <class C>
void attend(const Layout<C>& m, const word* const* page, const word* q, const int* pos, int rows, int window,
            float scale, AttendRoom& room) {
    using A = typename C::Number;
    const int wide = m.wide(), words = m.words(), last = pos[rows - 1];
    float* out = room.out.at_least(size_t(rows) * wide);
    float* score = room.score.at_least(size_t(rows) * KB);
    float* state = room.state.at_least(size_t(rows) * (VL + 2));
    float *sums = state, *top = state + size_t(rows) * VL, *factor = top + rows;
    std::fill_n(out, size_t(rows) * wide, 0.0f);
    std::fill_n(sums, size_t(rows) * VL, 0.0f);
    std::fill_n(top, rows, NONE);
    scale *= 1.44269504f;
    const int first = window ? std::max(0, pos[0] - window + 1) / KB * KB : 0;
    for (int base = first; base <= last; base += KB) {
        const word* const* here = page + base / P;
        const int n = std::min(KB, last + 1 - base), pages = (n + P - 1) / P;
        for (int r = 0; r < rows; r += ROWS) {
            const int count = std::min(ROWS, rows - r);
            for (int at = 0; at < n; at += 2 * VL) {
                const word* k0 = here[at / P];
                const word* k1 = VL == P ? here[std::min(at / P + 1, pages - 1)] : k0 + VL;
                tile_rows<C>(count, q + long(r) * words, k0, k1, P, words, score + r * KB + at, KB, nullptr, 0);
            }
            for (int i = r; i < r + count; i++) {
                const Span seen{window ? pos[i] - window + 1 : 0, pos[i]};
                factor[i] = soften<A>(score + i * KB, base, seen, scale, top[i], sums + i * VL);
            }
            const word* e = reinterpret_cast<const word*>(score + r * KB);
            for (int c = 0; c < wide; c += 2 * VL)
                weigh_rows<C>(count, e, factor + r, here, pages, m.keys() + c, wide, out + long(r) * wide + c);
        }
    }
    for (int r = 0; r < rows; r++) {
        const float inverse = 1.0f / total(loadv(sums + r * VL));
        for (int c = 0; c < wide; c += VL) storev(out + long(r) * wide + c, loadv(out + long(r) * wide + c) * inverse);
    }
}

}  // namespace parl
