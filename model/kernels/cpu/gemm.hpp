// C = A B in float32 from packed tiles. An output element is one chain of fused multiply-adds over k, rising, from 0:
// its bits depend on nothing but its own row of A and column of B, whatever else is computed with it.

#pragma once

#include <vector>

#include "simd.hpp"

namespace parl {

#if defined(__AVX512F__)
constexpr int NV = 2, MR = 8;  // 16 of 32 registers accumulate
#else
constexpr int NV = 2, MR = 6;  // 12 of 16
#endif
constexpr int NR = VL * NV;    // columns of a panel of B
constexpr int PANELS = 4;      // packed at a time
constexpr int PK = 256;        // of k at a time: a panel of B stays in the first-level cache
static_assert(MR <= 8, "packing stores whole vectors of 8, each over the tail of the one before");
constexpr int MC = 32 * MR;    // rows of A at a time: they stay in the second-level cache

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

// STEP columns of eight rows, column by column.
template <class T>
constexpr int STEP = 32 / sizeof(T);
template <class T, class Rows>
inline void columns(Rows row, const T* kind, long k, v8* out) {
    for (int h = 0; h < STEP<T>; h += QUAD<T>) quad(row, kind, k + h, [&](int i, v8 column) { out[h + i] = column; });
}

// The same where element (i, k) lies at row k: whole rows, for several panels of W at once, far apart in out.
template <int W, class T>
void pack_columns(const Operand<T>& m, long i0, int n, long k0, int kc, float* out, int panels, long apart) {
    constexpr int WIDE = (W + 7) / 8 * 8;
    for (int k = 0; k < kc; k++) {
        const T* row = m.row(k0 + k) + i0;
        for (int p = 0; p < panels; p++, row += W) {
            float* to = out + p * apart + long(k) * W;
            int left = n - p * W;
            if (left >= W && i0 + p * W + WIDE <= m.columns) {
                for (int j = 0; j < W; j += 8) store8(to + j, load8(row + j));
            } else {
                for (int j = 0; j < W; j++) to[j] = j < left ? load1(row + j) : 0.0f;
            }
        }
    }
}

// Whole lines of the cache (two steps), eight rows at a time: rows a power of two apart would push one another out.
// Returns how far it came.
template <int W, class T, class Rows>
inline int pack_lines(Rows row, const T* kind, int kc, float* out) {
    int k = 0;
    for (; k + 2 * STEP<T> <= kc; k += 2 * STEP<T>, out += 2 * STEP<T> * W)
        for (int g = 0; g < (W + 7) / 8; g++) {
            auto eight = [&](int j) { return row(g * 8 + j); };
            for (int j = 0; j < 8; j++) __builtin_prefetch(eight(j) + k + 8 * STEP<T>, 0, 2);
            for (int h = 0; h < 2; h++) {
                v8 block[STEP<T>];
                columns(eight, kind, k + h * STEP<T>, block);
                for (int i = 0; i < STEP<T>; i++) store8(out + (h * STEP<T> + i) * W + g * 8, block[i]);
            }
        }
    return k;
}

// out[k][W] = elements (i0 .. i0 + n, k0 .. k0 + kc), zeros to fill W (a multiple of 8 unless rows of out may be
// overwritten by the next: packed A, whose W is MR). WIDE: W rounded up to 8.
template <int W, class T>
void pack(const Operand<T>& m, long i0, int n, long k0, int kc, float* out) {
    constexpr int WIDE = (W + 7) / 8 * 8;
    if (m.transposed) return pack_columns<W>(m, i0, n, k0, kc, out, 1, 0);
    const T* rows[WIDE];
    for (int j = 0; j < WIDE; j++) rows[j] = m.row(i0 + std::min(j, n - 1)) + k0;
    int k = 0;
    if (m.index || n < WIDE)
        k = pack_lines<W>([&](int j) { return rows[j]; }, rows[0], kc, out);
    else
        k = pack_lines<W>([first = rows[0], step = m.stride](int j) { return first + j * step; }, rows[0], kc, out);
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
            for (int j = 0; j < NV; j++) bv[p * NV + j] = loadv(b + (long(p) * PK + k) * NR + j * VL);
        for (int r = 0; r < R; r++) {
            const vf av = a[k * MR + r] - vf{};  // minus, not plus: compilers know that it changes nothing
            for (int j = 0; j < P * NV; j++) acc[r][j] = fma(av, bv[j], acc[r][j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < P * NV; j++) storev(c + r * ldc + j * VL, acc[r][j]);
}

template <int R = MR>
inline void kernel_rows(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first) {
    if constexpr (R > 1)
        if (rows < R) return kernel_rows<R - 1>(rows, a, b, kc, c, ldc, first);
    kernel<R, 1>(a, b, kc, c, ldc, first);
}

// The same where c has fewer columns than a panel.
inline void kernel_edge(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first, int cols) {
    float tile[MR * NR];
    if (!first)
        for (int r = 0; r < rows; r++) std::memcpy(tile + r * NR, c + r * ldc, sizeof(float) * cols);
    kernel_rows(rows, a, b, kc, tile, NR, first);
    for (int r = 0; r < rows; r++) std::memcpy(c + r * ldc, tile + r * NR, sizeof(float) * cols);
}

// One or two rows and all panels at once: a single one would wait for its sums.
inline void kernel_small(int rows, const float* a, const float* b, int kc, float* c, long ldc, bool first) {
    if (rows == 1) return kernel<1, 4>(a, b, kc, c, ldc, first);
    kernel<2, 2>(a, b, kc, c, ldc, first);
    kernel<2, 2>(a, b + 2 * PK * NR, kc, c + 2 * NR, ldc, first);
}

struct Scratch {  // one thread's packed tiles
    std::vector<float> a, b, c;
    Scratch() : a(size_t(MC + MR) * PK + 8 * (MC / MR + 1)), b(PANELS * PK * NR) {}
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
    const int tiles = (m + MR - 1) / MR;
    for (int at = 0; at < k; at += PK) {
        int kc = std::min(PK, k - at);
        long size = long(kc) * MR + 8;
        for (int t = 0; t < tiles; t++)
            pack<MR>(a, i0 + t * MR, std::min(MR, m - t * MR), k0 + at, kc, s.a.data() + t * size);
        for (int j = 0; j < n; j += PANELS * NR) {
            int cols = std::min(PANELS * NR, n - j), panels = (cols + NR - 1) / NR;
            float* packed = s.b.data();
            if (b.transposed)
                pack_columns<NR>(b, j0 + j, cols, k0 + at, kc, packed, panels, PK * NR);
            else
                for (int p = 0; p < panels; p++)
                    pack<NR>(b, j0 + j + p * NR, std::min(NR, cols - p * NR), k0 + at, kc, packed + p * PK * NR);
            if (m <= 2 && cols == PANELS * NR) {
                kernel_small(m, s.a.data(), packed, kc, c + j, ldc, at == 0);
                continue;
            }
            for (int p = 0; p < panels; p++)
                for (int t = 0; t < tiles; t++) {
                    int rows = std::min(MR, m - t * MR), width = std::min(NR, cols - p * NR);
                    const float *ta = s.a.data() + t * size, *tb = packed + p * PK * NR;
                    float* to = c + long(t) * MR * ldc + j + p * NR;
                    if (width < NR) kernel_edge(rows, ta, tb, kc, to, ldc, at == 0, width);
                    else kernel_rows(rows, ta, tb, kc, to, ldc, at == 0);
                }
        }
    }
}

}  // namespace parl
