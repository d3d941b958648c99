// C = A B^T for few rows of A, straight from where B lies: packing would cost more than the product. Eight rows of B at a
// time are turned into columns within registers, so an output element is the same chain of fused multiply-adds as in
// gemm.hpp and has the same bits.

#pragma once

#include "simd.hpp"

namespace parl {

constexpr int FEW = 12;      // rows, above which packing pays

inline v8 join(v4 a, v4 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7); }
inline v4 load4(const void* p) { return *static_cast<const v4*>(p); }

// out[k] = element k of the eight rows, from their halves: (row i, row i + 4) of one half lie in one vector.
inline void transpose4(v8 a, v8 b, v8 c, v8 d, v8* out) {
    v8 ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13), AB = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    v8 cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13), CD = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    out[0] = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
    out[1] = __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    out[2] = __builtin_shufflevector(AB, CD, 0, 1, 8, 9, 4, 5, 12, 13);
    out[3] = __builtin_shufflevector(AB, CD, 2, 3, 10, 11, 6, 7, 14, 15);
}

// 16 bytes of each of eight rows, column by column, to use(i, column i): 4 columns of floats, 8 of bfloat16.
template <class T>
constexpr int QUAD = 16 / sizeof(T);
template <class Rows, class Use>
inline void quad(Rows row, const float*, long k, Use use) {
    auto half = [&](int i) { return join(load4(row(i) + k), load4(row(i + 4) + k)); };
    v8 out[4];
    transpose4(half(0), half(1), half(2), half(3), out);
    for (int i = 0; i < 4; i++) use(i, out[i]);
}
template <class Rows, class Use>
inline void quad(Rows row, const bf16*, long k, Use use) {  // pairs travel as one float, and part at the end
    auto half = [&](int i) { return join(load4(row(i) + k), load4(row(i + 4) + k)); };
    v8 pairs[4], column;
    transpose4(half(0), half(1), half(2), half(3), pairs);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        u8v both, one;
        std::memcpy(&both, &pairs[i], 32);
        one = both << 16;
        std::memcpy(&column, &one, 32);
        use(2 * i, column);
        one = both & 0xffff0000u;
        std::memcpy(&column, &one, 32);
        use(2 * i + 1, column);
    }
}

// R rows of A times 8 G rows of B; the last group has `last` of its eight. What lies `ahead` bytes on is wanted next.
template <int R, int G, class T, class Rows>
inline void few_tile(const float* const* a, Rows row, const T* kind, int k, float* c, long ldc, int last, long ahead) {
    constexpr int LINE = 64 / sizeof(T);
    v8 acc[R][G] = {};
    int at = 0;
    for (; at + LINE <= k; at += LINE)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {  // whole lines: rows a power of two apart push one another out of the cache
            auto eight = [&](int j) { return row(g * 8 + j); };
            for (int j = 0; j < 8; j++)
                __builtin_prefetch(reinterpret_cast<const char*>(eight(j) + at) + ahead, 0, 2);
#pragma GCC unroll 8
            for (int h = 0; h < LINE; h += QUAD<T>)
                quad(eight, kind, at + h, [&](int i, v8 b) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) acc[r][g] = fma(a[r][at + h + i] - v8{}, b, acc[r][g]);
                });
        }
    for (; at < k; at++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
            v8 b;
            for (int j = 0; j < 8; j++) b[j] = load1(row(g * 8 + j) + at);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) acc[r][g] = fma(a[r][at] - v8{}, b, acc[r][g]);
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int g = 0; g < G; g++)
            if (g < G - 1 || last == 8) store8(c + r * ldc + g * 8, acc[r][g]);
            else std::memcpy(c + r * ldc + g * 8, &acc[r][g], sizeof(float) * last);
}

template <int R, class T>
void few_rows(const float* const* a, const T* b, long ldb, int n, int k, float* c, long ldc, long ahead) {
    constexpr int G = R == 1 ? 4 : R <= 4 ? 2 : 1;  // as many sums as there are registers
    int j = 0;
    for (; j + 8 * G <= n; j += 8 * G)
        few_tile<R, G>(a, [first = b + j * ldb, ldb](int i) { return first + i * ldb; }, b, k, c + j, ldc, 8, ahead);
    for (; j < n; j += 8) {
        const T* rows[8];
        int last = std::min(8, n - j);
        for (int i = 0; i < 8; i++) rows[i] = b + (j + std::min(i, last - 1)) * ldb;
        few_tile<R, 1>(a, [&](int i) { return rows[i]; }, b, k, c + j, ldc, last, ahead);
    }
}

// The same for any m <= 8.
template <int R = 8, class T>
void few_of(int m, const float* const* a, const T* b, long ldb, int n, int k, float* c, long ldc, long ahead) {
    if constexpr (R > 1)
        if (m < R) return few_of<R - 1>(m, a, b, ldb, n, k, c, ldc, ahead);
    few_rows<R>(a, b, ldb, n, k, c, ldc, ahead);
}

// c[i][j] = sum over k of a[i][k] b[j * ldb + k], i < m, j < n.
template <class T>
void few(const float* const* a, int m, const T* b, long ldb, int n, int k, float* c, long ldc) {
    constexpr int BLOCK = 32;  // columns that stay in the cache while all rows are multiplied
    for (int j = 0; j < n; j += BLOCK)
        for (int r = 0; r < m; r += 8)
            few_of(std::min(8, m - r), a + r, b + j * ldb, ldb, std::min(BLOCK, n - j), k, c + r * ldc + j, ldc,
                   r ? 0 : BLOCK * ldb * long(sizeof(T)));
}

}  // namespace parl
