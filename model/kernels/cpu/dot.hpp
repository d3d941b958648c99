// C = A B^T where both lie row by row, as in a forward pass. An output element is VL chains of fused multiply-adds, a lane
// each, over every block of KC elements, summed in one order and the blocks in turn: its bits depend on its own row of A
// and of B alone. So nothing has to be turned into columns, and a single row is multiplied at the speed of memory.

#pragma once

#include <vector>

#include "simd.hpp"

namespace parl {

#if defined(__AVX512F__)
constexpr int DOT_R = 4, DOT_J = 6;  // 24 of 32 registers accumulate
#else
constexpr int DOT_R = 3, DOT_J = 4;  // 12 of 16
#endif
constexpr int KC = 512;         // elements between two sums: a block of B and rows of A stay in the first-level cache
constexpr int JB = 2 * DOT_J;   // rows of B at a time
constexpr int FEW = 3 * DOT_R;  // rows of A up to which B is read where it lies

// R rows of A from element k0 on, J rows of B [.][ldb] from there, k of them: their products are added to c (or written,
// where k0 is 0). The J rows' worth of memory from `next` on is wanted soon; it is read in its order, as memory likes it.
template <int R, int J, class T>
inline void dot_tile(const float* const* a, int k0, const T* b, long ldb, int k, float* c, long ldc, const T* next) {
    constexpr int LINE = 64 / sizeof(T);
    vf acc[R][J] = {};
    auto step = [&](int at, auto load) __attribute__((always_inline)) {
        vf x[R];
        for (int r = 0; r < R; r++) x[r] = held(load(a[r] + k0 + at));
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) {
            const vf y = held(load(b + j * ldb + at));
            for (int r = 0; r < R; r++) acc[r][j] = fma(x[r], y, acc[r][j]);
        }
    };
    int at = 0;
    if (next)
        for (; at + LINE <= k; at += LINE) {
            for (int j = 0; j < J; j++) __builtin_prefetch(next + at * J + j * LINE, 0, 2);
#pragma GCC unroll 4
            for (int h = 0; h < LINE; h += VL) step(at + h, [](auto p) { return loadf(p); });
        }
    for (; at + VL <= k; at += VL) step(at, [](auto p) { return loadf(p); });
    if (at < k) step(at, [&](auto p) { return loadf(p, k - at); });
    for (int r = 0; r < R; r++) {
        float sums[(J + 3) / 4 * 4];
        for (int j = 0; j < J; j += 4) {
            auto one = [&](int i) { return acc[r][std::min(i, J - 1)]; };
            const v4 four = totals(one(j), one(j + 1), one(j + 2), one(j + 3));
            std::memcpy(sums + j, &four, 16);
        }
        for (int j = 0; j < J; j++) c[r * ldc + j] = k0 ? c[r * ldc + j] + sums[j] : sums[j];
    }
}

// R rows of A times n rows of B; and the same for any m <= DOT_R.
template <int R, int J = DOT_J, class T>
inline void dot_columns(const float* const* a, int k0, const T* b, long ldb, int n, int k, float* c, long ldc, const T* next) {
    if constexpr (J > 1)
        if (n < J) return dot_columns<R, J - 1>(a, k0, b, ldb, n, k, c, ldc, next);
    int j = 0;
    for (; j + J <= n; j += J)
        dot_tile<R, J>(a, k0, b + j * ldb, ldb, k, c + j, ldc, next ? next + j * ldb : nullptr);
    if (j < n) dot_columns<R>(a, k0, b + j * ldb, ldb, n - j, k, c + j, ldc, next ? next + j * ldb : nullptr);
}
template <int R = DOT_R, class T>
inline void dot_rows(const float* const* a, int m, int k0, const T* b, long ldb, int n, int k, float* c, long ldc, const T* next) {
    if constexpr (R > 1)
        if (m < R) return dot_rows<R - 1>(a, m, k0, b, ldb, n, k, c, ldc, next);
    dot_columns<R>(a, k0, b, ldb, n, k, c, ldc, next);
}

struct DotRoom {
    std::vector<float> a, b;
    std::vector<const float*> rows;
};

// to[n][ld] = elements [k0, k0 + k) of n rows, zeros behind.
template <class T, class RowOf>
void widen_rows(RowOf row, int n, int k0, int k, int ld, std::vector<float>& to) {
    if (to.size() < size_t(n) * ld) to.resize(size_t(n) * ld);
    for (int i = 0; i < n; i++) {
        float* out = to.data() + size_t(i) * ld;
        widen(row(i) + k0, k, out);
        for (int z = k; z < ld; z++) out[z] = 0;
    }
}

// Few rows of A: B is read once, where it lies.
template <class TA, class TB, class RowOf>
void dots_few(RowOf row_a, int m, const TB* b, int n, int k, float* c, long ldc, const TB* next, DotRoom& s) {
    if constexpr (sizeof(TA) == 4) {
        for (int i = 0; i < m; i++) s.rows[i] = row_a(i);
    } else {
        widen_rows<TA>(row_a, m, 0, k, k, s.a);
        for (int i = 0; i < m; i++) s.rows[i] = s.a.data() + size_t(i) * k;
    }
    for (int j = 0; j < n; j += JB) {
        const TB* ahead = j + JB < n ? b + (j + JB) * long(k) : next;
        for (int at = 0; at < k; at += KC)
            for (int i = 0; i < m; i += DOT_R)
                dot_rows(s.rows.data() + i, std::min(DOT_R, m - i), at, b + j * long(k) + at, k, std::min(JB, n - j),
                         std::min(KC, k - at), c + i * ldc + j, ldc, i || !ahead ? nullptr : ahead + long(at) * DOT_J);
    }
}

// Many: blocks of both are copied side by side, or rows a power of two apart would push one another out of the cache.
template <class TA, class TB, class RowOf>
void dots_many(RowOf row_a, int m, const TB* b, int n, int k, float* c, long ldc, DotRoom& s) {
    for (int at = 0; at < k; at += KC) {
        const int kc = std::min(KC, k - at), ld = (kc + VL - 1) / VL * VL;
        widen_rows<TA>(row_a, m, at, kc, ld, s.a);
        for (int i = 0; i < m; i++) s.rows[i] = s.a.data() + size_t(i) * ld - at;
        for (int j = 0; j < n; j += JB) {
            const int cols = std::min(JB, n - j);
            widen_rows<TB>([&](int i) { return b + (j + i) * long(k); }, cols, at, kc, ld, s.b);
            const float* block = s.b.data();
            for (int i = 0; i < m; i += DOT_R)
                dot_rows<DOT_R, float>(s.rows.data() + i, std::min(DOT_R, m - i), at, block, ld, cols, ld, c + i * ldc + j,
                                       ldc, nullptr);
        }
    }
}

// c[i][j] = sum over k of row_a(i)[k] b[j][k], i < m, j < n. After B, `next` is read, if it is not null.
template <class TA, class TB, class RowOf>
void dots(RowOf row_a, int m, const TB* b, int n, int k, float* c, long ldc, const TB* next, DotRoom& s) {
    s.rows.resize(m);
    if (k == 0)
        for (int i = 0; i < m; i++) std::memset(c + i * ldc, 0, sizeof(float) * n);
    if (m <= FEW) dots_few<TA>(row_a, m, b, n, k, c, ldc, next, s);
    else dots_many<TA>(row_a, m, b, n, k, c, ldc, s);
}

}  // namespace parl
