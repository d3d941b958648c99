// Router, dispatch and experts of a mixture-of-experts block, forward and backward (model/kernels/reference.py is the
// specification). Threads split independent outputs only, so their number changes no bit.
//
// Legend: T tokens, D hidden, E experts, K experts a token, I expert width, S = T K assignments sorted by expert.

#include <type_traits>
#include <vector>

#include "dot.hpp"
#include "pairs.hpp"
#include "route.hpp"

using namespace parl;

namespace {

struct Experts {  // what forward and backward share
    int T, D, E, I, K, threads;
    const int *order, *inverse, *offsets;
    const float* weights;  // [T][K]
    long S() const { return long(T) * K; }
};

// What lies between two products is float32; where the processor multiplies pairs of bfloat16, it is kept as such.
template <class T>
using Inner = std::conditional_t<PAIRS && sizeof(T) == 2, bf16, float>;

// Rows of a tile, and of a piece of work at most.
template <class T>
constexpr int UNIT = sizeof(Inner<T>) == 2 ? PAIR_M : MR;
template <class T>
constexpr int MOST = sizeof(Inner<T>) == 2 ? 40 * PAIR_M : MC;

struct Item {
    int expert, row, rows, begin, end;  // sorted rows; columns [begin, end)
};

// Rows of each expert in pieces of at most MOST, columns in pieces where the rows alone would leave threads idle.
template <class T>
std::vector<Item> items(const Experts& m, int columns) {
    std::vector<Item> out;
    constexpr int U = UNIT<T>;
    int piece = int(std::min<long>(MOST<T>, m.S() / (4L * m.threads) + 1));
    piece = std::max((piece + U - 1) / U * U, 8 * U);
    for (int e = 0; e < m.E; e++) {
        int rows = m.offsets[e + 1] - m.offsets[e], parts = (rows + piece - 1) / piece;
        int size = parts ? ((rows + parts - 1) / parts + U - 1) / U * U : 0;  // of one length, not a rest at the end
        for (int r = 0; r < rows; r += size)
            out.push_back({e, m.offsets[e] + r, std::min(size, rows - r), 0, columns});
    }
    int splits = m.threads > 1 ? int(4L * m.threads / std::max<size_t>(out.size(), 1)) : 1;
    int width = splits > 1 ? ((columns + splits - 1) / splits + 4 * NR - 1) / (4 * NR) * (4 * NR) : columns;
    if (width >= columns) return out;
    std::vector<Item> cut;
    for (const Item& i : out)
        for (int j = 0; j < columns; j += width)
            cut.push_back({i.expert, i.row, i.rows, j, std::min(columns, j + width)});
    return cut;
}

Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}

DotRoom& dot_room() {
    static thread_local DotRoom s;
    return s;
}

PairRoom& pair_room() {
    static thread_local PairRoom s;
    return s;
}

// Rows of A times the rows of B [n][k]: dot.hpp, or pairs.hpp where both are pairs. After B, `next` is read, if it is not null.
template <class TA, class TB>
void dots_of(const Operand<TA>& a, long i0, int m, const TB* b, int n, int k, float* c, long ldc, const TB* next) {
    if constexpr (PAIRS && sizeof(TA) == 2 && sizeof(TB) == 2)
        gemm_pairs(a, Operand<TB>{b, k, k}, i0, m, 0, n, 0, k, c, ldc, pair_room());
    else
        dots<TA>([&](int r) { return a.row(i0 + r); }, m, b, n, k, c, ldc, next, dot_room());
}
// The product of gemm.hpp, or of pairs.hpp.
template <class TA, class TB>
void gemm_of(const Operand<TA>& a, const Operand<TB>& b, long i0, int m, long j0, int n, long k0, int k, float* c, long ldc) {
    if constexpr (PAIRS && sizeof(TA) == 2 && sizeof(TB) == 2) gemm_pairs(a, b, i0, m, j0, n, k0, k, c, ldc, pair_room());
    else gemm(a, b, i0, m, j0, n, k0, k, c, ldc, scratch());
}

template <class T>
void convert(const float* from, long n, T* to) {
    for (long i = 0; i < n; i += VL) {
        int left = int(std::min<long>(VL, n - i));
        storef(to + i, loadf(from + i, left), left);
    }
}

// Gate and up columns [begin, end) of an item's rows, and silu(gate) up. The next item's expert is `next`.
template <class T>
void up(const Experts& m, const Item& it, int next, const T* x, const T* w13, T* hidden, Inner<T>* act) {
    int width = it.end - it.begin;
    const long size = 2L * m.I * m.D;
    const T *b = w13 + it.expert * size, *then = next == it.expert ? nullptr : w13 + next * size;
    const Operand<T> rows{x, m.D, m.D, false, m.order, m.K};
    float* c;
    long ld;
    if constexpr (sizeof(T) == 4) {
        c = hidden + long(it.row) * 2 * m.I + it.begin, ld = 2 * m.I;
    } else {
        c = scratch().at_least(scratch().c, size_t(it.rows) * 2 * width), ld = 2 * width;
    }
    long second = sizeof(T) == 4 ? m.I : width;  // where up begins
    if (width == m.I) {
        dots_of(rows, it.row, it.rows, b, 2 * m.I, m.D, c, ld, then);
    } else {
        dots_of(rows, it.row, it.rows, b + long(it.begin) * m.D, width, m.D, c, ld, then);
        dots_of(rows, it.row, it.rows, b + long(m.I + it.begin) * m.D, width, m.D, c + second, ld, then);
    }
    for (int r = 0; r < it.rows; r++)
        for (int i = 0; i < width; i += VL) {
            int left = width - i;
            vf g = loadf(c + r * ld + i, left), u = loadf(c + r * ld + second + i, left);
            storef(act + long(it.row + r) * m.I + it.begin + i, g * sigmoid(g) * u, left);
            if constexpr (sizeof(T) != 4) {
                T* h = hidden + long(it.row + r) * 2 * m.I + it.begin + i;
                storef(h, g, left);
                storef(h + m.I, u, left);
            }
        }
}

template <class T>
void combine(const Experts& m, int t, const float* rows, const float* weights, const T* base, T* out) {
    for (int d = 0; d < m.D; d += VL) {
        int left = m.D - d;
        vf sum = {};
        for (int k = 0; k < m.K; k++) {
            vf y = loadf(rows + long(m.inverse[long(t) * m.K + k]) * m.D + d, left);
            sum += weights ? y * weights[long(t) * m.K + k] : y;
        }
        if (base) sum += loadf(base + long(t) * m.D + d, left);
        storef(out + long(t) * m.D + d, sum, left);
    }
}

template <class T>
void forward(const Experts& m, const T* x, const T* w13, const T* w2, const T* base, T* hidden, float* room, float* y,
             T* out) {
    auto act = reinterpret_cast<Inner<T>*>(room);
    std::vector<Item> first = items<T>(m, m.I), second = items<T>(m, m.D);
#pragma omp parallel num_threads(m.threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < first.size(); i++)
            up(m, first[i], first[std::min(i + 1, first.size() - 1)].expert, x, w13, hidden, act);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < second.size(); i++) {
            const Item& it = second[i];
            const long size = long(m.D) * m.I;
            const int next = second[std::min(i + 1, second.size() - 1)].expert;
            dots_of(Operand<Inner<T>>{act, m.I, m.I}, it.row, it.rows, w2 + it.expert * size + long(it.begin) * m.I,
                    it.end - it.begin, m.I, y + long(it.row) * m.D + it.begin, m.D,
                    next == it.expert ? nullptr : w2 + next * size);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < m.T; t++) combine(m, t, y, m.weights, base, out);
    }
}

// From da = dout W2 of sorted row s (unweighted): the weight's gradient, dh [2 I] and weight * act [I].
template <class T>
void through_swiglu(const Experts& m, long s, const T* hidden, const float* da, Inner<T>* dh, Inner<T>* act, float* dweights) {
    const T* h = hidden + s * 2 * m.I;
    float weight = m.weights[m.order[s]];
    vf sum = {};
    for (int i = 0; i < m.I; i += VL) {
        int left = m.I - i;
        vf g = loadf(h + i, left), u = loadf(h + m.I + i, left), d = loadf(da + i, left);
        vf gate = sigmoid(g), silu = g * gate;
        sum += d * (silu * u);
        d *= weight;
        storef(act + i, silu * u * weight, left);
        storef(dh + i, d * u * (gate + silu * (1.0f - gate)), left);
        storef(dh + m.I + i, d * silu, left);
    }
    float total = 0;
    for (int i = 0; i < VL; i++) total += sum[i];
    dweights[m.order[s]] = total;
}

// Rows [begin, end) of an expert's weight gradient [rows][n]: sum over its sorted rows k of a(i, k) b(j, k).
template <class T, class TA, class TB>
void weight_gradient(const Experts& m, const Item& it, const Operand<TA>& a, const Operand<TB>& b, int n, T* out) {
    int from = m.offsets[it.expert], k = m.offsets[it.expert + 1] - from, rows = it.end - it.begin;
    if constexpr (sizeof(T) == 4) {
        gemm_of(a, b, it.begin, rows, 0, n, from, k, out + long(it.begin) * n, n);
    } else {
        float* c = scratch().at_least(scratch().c, size_t(rows) * n);
        gemm_of(a, b, it.begin, rows, 0, n, from, k, c, n);
        convert(c, long(rows) * n, out + long(it.begin) * n);
    }
}

template <class T>
std::vector<Item> row_blocks(int experts, int rows) {
    std::vector<Item> out;
    int parts = (rows + MOST<T> - 1) / MOST<T>, size = ((rows + parts - 1) / parts + UNIT<T> - 1) / UNIT<T> * UNIT<T>;
    for (int e = 0; e < experts; e++)
        for (int r = 0; r < rows; r += size) out.push_back({e, 0, 0, r, std::min(rows, r + size)});
    return out;
}

// room13 [S][2 I], room2 [S][I] and dxs [S][D] are room for what lies between: a row of act lies where its da, which it
// replaces, began.
template <class T>
void backward(const Experts& m, const T* dout, const T* x, const T* w13, const T* w2, const T* hidden, float* room13,
              float* room2, float* dxs, T* dx, T* dw13, T* dw2, float* dweights) {
    std::vector<Item> rows = items<T>(m, m.I), second = items<T>(m, m.D);
    std::vector<Item> b13 = row_blocks<T>(m.E, 2 * m.I), b2 = row_blocks<T>(m.E, m.D);
    Operand<T> dout_rows{dout, m.D, m.D, false, m.order, m.K}, dout_columns{dout, m.D, m.D, true, m.order, m.K};
    Operand<T> x_columns{x, m.D, m.D, true, m.order, m.K};
    auto dh = reinterpret_cast<Inner<T>*>(room13), act = reinterpret_cast<Inner<T>*>(room2);
    const long apart = long(m.I) * sizeof(float) / sizeof(Inner<T>);  // of two rows of act
    Operand<Inner<T>> dh_rows{dh, 2 * m.I, 2 * m.I}, dh_columns{dh, 2 * m.I, 2 * m.I, true}, act_columns{act, apart, m.I, true};
#pragma omp parallel num_threads(m.threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < rows.size(); i++) {
            const Item& it = rows[i];
            Operand<T> w{w2 + long(it.expert) * m.D * m.I, m.I, m.I, true};
            gemm_of(dout_rows, w, it.row, it.rows, it.begin, it.end - it.begin, 0, m.D,
                    room2 + long(it.row) * m.I + it.begin, m.I);
        }
#pragma omp for schedule(static)
        for (long s = 0; s < m.S(); s++) through_swiglu(m, s, hidden, room2 + s * m.I, dh + s * 2 * m.I, act + s * apart, dweights);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < second.size(); i++) {
            const Item& it = second[i];
            Operand<T> w{w13 + long(it.expert) * 2 * m.I * m.D, m.D, m.D, true};
            gemm_of(dh_rows, w, it.row, it.rows, it.begin, it.end - it.begin, 0, 2 * m.I,
                    dxs + long(it.row) * m.D + it.begin, m.D);
        }
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < b13.size(); i++)
            weight_gradient<T>(m, b13[i], dh_columns, x_columns, m.D, dw13 + long(b13[i].expert) * 2 * m.I * m.D);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < b2.size(); i++)
            weight_gradient<T>(m, b2[i], dout_columns, act_columns, m.I, dw2 + long(b2[i].expert) * m.D * m.I);
#pragma omp for schedule(static)
        for (int t = 0; t < m.T; t++) combine<T>(m, t, dxs, nullptr, nullptr, dx);
    }
}

}  // namespace

extern "C" {

// ints: T, E, K, groups, topk_groups, norm, threads
void parl_route(const int* ints, float scale, const float* logits, const float* bias, const int16_t* forced, int16_t* ids,
                float* weights, float* scores, int* counts) {
    int T = ints[0], E = ints[1], K = ints[2], threads = ints[6];
    RouteShape shape{E, K, ints[3], ints[4], ints[5] != 0, scale};
    std::memset(counts, 0, sizeof(int) * E);
#pragma omp parallel num_threads(threads)
    {
        RouteScratch room(shape);
        std::vector<int> seen(E);
#pragma omp for schedule(static)
        for (int first = 0; first < T; first += 64) {
            const int n = std::min(64, T - first);
            const long at = long(first) * K;
            route_tokens(shape, room, n, logits + long(first) * E, bias, forced ? forced + at : nullptr, ids + at,
                         weights + at, scores + at);
            for (long i = at; i < at + long(n) * K; i++) seen[ids[i]]++;
        }
#pragma omp critical
        for (int e = 0; e < E; e++) counts[e] += seen[e];
    }
}

// ints: T, E, K, norm, threads
void parl_route_backward(const int* ints, float scale, const float* dweights, const float* scores, const int16_t* ids,
                         float* dlogits) {
    int T = ints[0], E = ints[1], K = ints[2], norm = ints[3];
#pragma omp parallel for schedule(static) num_threads(ints[4])
    for (int t = 0; t < T; t++) {
        const float *d = dweights + long(t) * K, *s = scores + long(t) * K;
        float* out = dlogits + long(t) * E;
        std::memset(out, 0, sizeof(float) * E);
        float total = 1e-20f, dot = 0;
        for (int k = 0; k < K; k++) total += s[k], dot += d[k] * scale * s[k];
        for (int k = 0; k < K; k++) {
            float ds = norm ? (d[k] * scale - dot / total) / total : d[k] * scale;
            out[ids[long(t) * K + k]] += ds * s[k] * (1 - s[k]);  // a forced row may name an expert twice
        }
    }
}

// Stable counting sort; returns 1 if an id is no expert's.
int parl_dispatch(long S, int E, const int16_t* ids, int* order, int* inverse, int* offsets) {
    std::memset(offsets, 0, sizeof(int) * (E + 1));
    for (long i = 0; i < S; i++) {
        if (ids[i] < 0 || ids[i] >= E) return 1;
        offsets[ids[i] + 1]++;
    }
    for (int e = 0; e < E; e++) offsets[e + 1] += offsets[e];
    std::vector<int> next(offsets, offsets + E);
    for (long i = 0; i < S; i++) {
        int place = next[ids[i]]++;
        inverse[i] = place;
        order[place] = int(i);
    }
    return 0;
}

// ints: T, D, E, I, K, threads, whether bfloat16. plan: order, inverse, offsets.
void parl_expert_mlp(const int* ints, const int* const* plan, const float* weights, const void* const* in, void* hidden,
                     float* act, float* y, void* out) {
    Experts m{ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], plan[0], plan[1], plan[2], weights};
    auto run = [&](auto zero) {
        using T = decltype(zero);
        auto p = [&](int i) { return static_cast<const T*>(in[i]); };
        forward<T>(m, p(0), p(1), p(2), p(3), static_cast<T*>(hidden), act, y, static_cast<T*>(out));
    };
    if (ints[6]) run(bf16{});
    else run(0.0f);
}

// Dispatch and experts at once, nothing kept; in: x, w13, w2, base. Returns 1 if an id is no expert's.
int parl_experts(int T, int D, int E, int I, int K, int threads, int half, const int16_t* ids, const float* weights,
                 const void* x, const void* w13, const void* w2, const void* base, void* out) {
    static thread_local std::vector<int> plan;
    static thread_local std::vector<float> room;
    long S = long(T) * K;
    plan.resize(2 * S + E + 1);
    room.resize(S * (3L * I + D));  // what forward keeps, act and y
    int *order = plan.data(), *inverse = order + S, *offsets = inverse + S;
    if (parl_dispatch(S, E, ids, order, inverse, offsets)) return 1;
    const int ints[] = {T, D, E, I, K, threads, half}, *sorted[] = {order, inverse, offsets};
    const void* in[] = {x, w13, w2, base};
    float *act = room.data() + S * 2 * I, *y = act + S * I;
    parl_expert_mlp(ints, sorted, weights, in, room.data(), act, y, out);
    return 0;
}

// in: dout, x, w13, w2, hidden; out: dx, dw13, dw2; room: dh, act, dxs.
void parl_expert_mlp_backward(const int* ints, const int* const* plan, const float* weights, const void* const* in,
                              float* const* room, void* const* out, float* dweights) {
    Experts m{ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], plan[0], plan[1], plan[2], weights};
    auto run = [&](auto zero) {
        using T = decltype(zero);
        auto p = [&](int i) { return static_cast<const T*>(in[i]); };
        auto q = [&](int i) { return static_cast<T*>(out[i]); };
        backward<T>(m, p(0), p(1), p(2), p(3), p(4), room[0], room[1], room[2], q(0), q(1), q(2), dweights);
    };
    if (ints[6]) run(bf16{});
    else run(0.0f);
}
}
