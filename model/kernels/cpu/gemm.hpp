// C = A B in float32 from packed tiles. An output element is one chain of fused multiply-adds over k, rising, from 0:
// its bits depend on nothing but its own row of A and column of B, whatever else is computed with it.

#pragma once

#include <vector>

#include "simd.hpp"

namespace parl {

#if defined(__AVX512F__)
constexpr int NV = 2, MR = 12;  // 24 of 32 registers accumulate
#else
constexpr int NV = 2, MR = 6;  // 12 of 16
#endif
constexpr int NR = VL * NV;    // columns of a panel of B
constexpr int KC = 256;        // of k at a time: a panel of B stays in the first-level cache
constexpr int MC = 32 * MR;    // rows of A at a time: they stay in the second-level cache
constexpr int GROUPS = (MR + 7) / 8, SLACK = GROUPS * 8 - MR;  // packing A stores whole vectors of 8

// Element (i, k) of an operand: at row i, column k, or at row k, column i (transposed). Rows may be gathered: row r is
// index[r] / divisor.
template <class T>
struct Operand {
    const T* data;
    long stride, columns;
    bool transposed = false;
    const int* index = nullptr;
    int divisor = 1;
    const T* row(long r) const { return data + (index ? index[r] / divisor : r) * stride; }
};

inline void transpose8(v8* r) {
    v8 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        a[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + j] = __builtin_shufflevector(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + j + 2] = __builtin_shufflevector(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// out[k][W] = elements (i0 .. i0 + n, k0 .. k0 + kc), zeros to fill W (a multiple of 8 unless rows of out may be
// overwritten by the next: packed A, whose W is MR). WIDE: W rounded up to 8.
template <int W, class T>
void pack(const Operand<T>& m, long i0, int n, long k0, int kc, float* out) {
    constexpr int WIDE = (W + 7) / 8 * 8;
    if (m.transposed) {
        for (int k = 0; k < kc; k++) {
            const T* row = m.row(k0 + k) + i0;
            float* to = out + long(k) * W;
            if (n == W && i0 + WIDE <= m.columns) {
                for (int j = 0; j < W; j += 8) store8(to + j, load8(row + j));
            } else {
                for (int j = 0; j < n; j++) to[j] = load1(row + j);
                for (int j = n; j < W; j++) to[j] = 0;
            }
        }
        return;
    }
    const T* rows[WIDE];
    for (int j = 0; j < WIDE; j++) rows[j] = m.row(i0 + std::min(j, n - 1)) + k0;
    int k = 0;
    for (; k + 8 <= kc; k += 8) {
        v8 block[WIDE / 8][8];
        for (int g = 0; g < WIDE / 8; g++) {
            for (int j = 0; j < 8; j++) block[g][j] = load8(rows[g * 8 + j] + k);
            transpose8(block[g]);
        }
        for (int i = 0; i < 8; i++)
            for (int g = 0; g < WIDE / 8; g++) store8(out + long(k + i) * W + g * 8, block[g][i]);
    }
    for (; k < kc; k++)
        for (int j = 0; j < W; j++) out[long(k) * W + j] = load1(rows[j] + k);
}

// R rows of A times P panels of B, added to c (or written, where k begins).
template <int R, int P>
inline void kernel(const float* a, const float* b, int kc, float* c, long ldc, bool first) {
    vf acc[R][P * NV];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < P * NV; j++) acc[r][j] = first ? vf{} : loadv(c + r * ldc + j * VL);
    for (int k = 0; k < kc; k++) {
        vf bv[P * NV];
        for (int p = 0; p < P; p++)
            for (int j = 0; j < NV; j++) bv[p * NV + j] = loadv(b + (long(p) * KC + k) * NR + j * VL);
        for (int r = 0; r < R; r++) {
            const vf av = a[k * MR + r] - vf{};  // minus, not plus: compilers know that it changes nothing
            for (int j = 0; j < P * NV; j++) acc[r][j] += av * bv[j];
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < P * NV; j++) storev(c + r * ldc + j * VL, acc[r][j]);
}

template <int P, int R = MR>
inline void kernel_rows(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first) {
    if constexpr (R > 1)
        if (rows < R) return kernel_rows<P, R - 1>(rows, a, b, kc, c, ldc, first);
    kernel<R, P>(a, b, kc, c, ldc, first);
}

// The same where c has fewer columns than the panels.
template <int P>
inline void kernel_edge(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first, int cols) {
    float tile[MR * P * NR];
    if (!first)
        for (int r = 0; r < rows; r++) std::memcpy(tile + r * P * NR, c + r * ldc, sizeof(float) * cols);
    kernel_rows<P>(rows, a, b, kc, tile, P * NR, first);
    for (int r = 0; r < rows; r++) std::memcpy(c + r * ldc, tile + r * P * NR, sizeof(float) * cols);
}

// One or two rows and four panels.
inline void kernel_small(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first) {
    if (rows == 1) return kernel<1, 4>(a, b, kc, c, ldc, first);
    kernel<2, 2>(a, b, kc, c, ldc, first);
    kernel<2, 2>(a, b + 2 * KC * NR, kc, c + 2 * NR, ldc, first);
}
inline void kernel_small_edge(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first, int cols) {
    for (int p = 0; p * NR < cols; p++)
        kernel_edge<1>(rows, a, b + p * KC * NR, kc, c + p * NR, ldc, first, std::min(NR, cols - p * NR));
}

struct Scratch {  // one thread's packed tiles
    std::vector<float> a, b, c, d;
    Scratch() : a(size_t(MC + MR) * KC + 8 * (MC / MR + 1)), b(4 * KC * NR) {}
    float* at_least(std::vector<float>& v, size_t n) {
        if (v.size() < n) v.resize(n);
        return v.data();
    }
};

// c[i][j] = sum over k of a(i, k) b(j, k) for i in [i0, i0 + m), m <= MC, and j in [j0, j0 + n).
template <class TA, class TB>
void gemm(const Operand<TA>& a, const Operand<TB>& b, long i0, int m, long j0, int n, long k0, int k, float* c, long ldc,
          Scratch& s) {
    if (k == 0)
        for (int r = 0; r < m; r++) std::memset(c + r * ldc, 0, sizeof(float) * n);
    const int tiles = (m + MR - 1) / MR, wide = m <= 2 ? 4 : 1;  // one or two rows: more panels, or they wait for sums
    for (int at = 0; at < k; at += KC) {
        int kc = std::min(KC, k - at);
        long size = long(kc) * MR + 8;
        for (int t = 0; t < tiles; t++)
            pack<MR>(a, i0 + t * MR, std::min(MR, m - t * MR), k0 + at, kc, s.a.data() + t * size);
        for (int j = 0; j < n; j += wide * NR) {
            int cols = std::min(wide * NR, n - j);
            for (int p = 0; p * NR < cols; p++)
                pack<NR>(b, j0 + j + p * NR, std::min(NR, cols - p * NR), k0 + at, kc, s.b.data() + long(p) * KC * NR);
            for (int t = 0; t < tiles; t++) {
                int rows = std::min(MR, m - t * MR);
                float* to = c + long(t) * MR * ldc + j;
                const float* from = s.a.data() + t * size;
                if (wide > 1) {
                    if (cols < wide * NR) kernel_small_edge(rows, from, s.b.data(), kc, to, ldc, at == 0, cols);
                    else kernel_small(rows, from, s.b.data(), kc, to, ldc, at == 0);
                } else if (cols < NR) kernel_edge<1>(rows, from, s.b.data(), kc, to, ldc, at == 0, cols);
                else kernel_rows<1>(rows, from, s.b.data(), kc, to, ldc, at == 0);
            }
        }
    }
}

}  // namespace parl
