// Products of bfloat16 on processors that multiply pairs (AVX512_BF16): sums are float32, of two of k at a time.
//
// Tiles of both operands are packed as words (words.hpp). An output element is one chain of steps over k, rising, from 0: its
// bits depend on nothing but its own row of A and column of B, whatever else is computed with it.

#pragma once

#include <vector>

#include "gemm.hpp"
#include "words.hpp"

namespace parl {

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;

inline __mmask32 first(int n) { return n >= 32 ? ~__mmask32(0) : (__mmask32(1) << n) - 1; }
struct PairRoom {  // one thread's packed tiles
    std::vector<word> tiles, panel;
    template <class V>
    static auto* at_least(V& v, size_t n) {
        if (v.size() < n) v.resize(n);
        return v.data();
    }
};

constexpr int PAIR_M = ROWS, PAIR_N = 2 * VL;  // rows and columns of a tile: 28 of 32 registers accumulate
constexpr int PAIR_W = 128;                    // words of k at a time: a panel of B and a tile of A stay in the first-level cache

// out[u][W]: word u of k in [k0, k0 + kc), for W rows of the operand from i0 on, n of which exist; what is behind is unused.
template <int W>
void pack_pairs(const Operand<bf16>& m, long i0, int n, long k0, int kc, word* out) {
    if (m.transposed) {
        for (int k = 0; k < kc; k += 2, out += W) {
            const bf16 *one = m.row(k0 + k) + i0, *two = k + 1 < kc ? m.row(k0 + k + 1) + i0 : nullptr;
            for (int j = 0; j < W; j += VL) {
                const __mmask16 there = first(std::max(0, n - j)), kept = first(W - j);
                __m512i pair = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, one + j));
                if (two) pair |= _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, two + j)), 16);
                _mm512_mask_storeu_epi32(out + j, kept, pair);
            }
        }
        return;
    }
    auto row = [&](int r) { return reinterpret_cast<const word*>(m.row(i0 + std::min(r, n - 1)) + k0); };
    turn(row, W, kc / 2, out);
    if (kc % 2)
        for (int r = 0; r < W; r++) out[long(kc / 2) * W + r] = reinterpret_cast<const uint16_t*>(row(r))[kc - 1];
}

// R rows of A [words][PAIR_M] times a panel of B [words][PAIR_N], added to c (or written, where k begins).
template <int R>
__attribute__((noinline)) void pair_tile(const word* a, const word* b, int words, float* c, long ldc, bool begins) {
    vf acc[R][2];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) acc[r][j] = begins ? vf{} : loadv(c + r * ldc + j * VL);
    for (int u = 0; u < words; u++, a += PAIR_M, b += PAIR_N) {
        const iv x = held(loadw(b)), y = held(loadw(b + VL));
#pragma GCC unroll 14
        for (int r = 0; r < R; r++) {
            const iv v = held(spread(a[r]));
            acc[r][0] = Pair::step(acc[r][0], v, x);
            acc[r][1] = Pair::step(acc[r][1], v, y);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) storev(c + r * ldc + j * VL, acc[r][j]);
}
template <int R = PAIR_M>
inline void pair_tiles(int rows, const word* a, const word* b, int words, float* c, long ldc, bool begins) {
    if constexpr (R > 1)
        if (rows < R) return pair_tiles<R - 1>(rows, a, b, words, c, ldc, begins);
    pair_tile<R>(a, b, words, c, ldc, begins);
}

// c[i][j] = sum over k of a(i, k) b(j, k) for i in [i0, i0 + m) and j in [j0, j0 + n).
inline void gemm_pairs(const Operand<bf16>& a, const Operand<bf16>& b, long i0, int m, long j0, int n, long k0, int k, float* c,
                       long ldc, PairRoom& s) {
    if (k == 0)
        for (int r = 0; r < m; r++) std::memset(c + r * ldc, 0, sizeof(float) * n);
    const int tiles = (m + PAIR_M - 1) / PAIR_M;
    const long size = long(PAIR_W) * PAIR_M;
    word *packed = PairRoom::at_least(s.tiles, tiles * size + VL), *panel = PairRoom::at_least(s.panel, PAIR_W * PAIR_N);
    for (int at = 0; at < k; at += 2 * PAIR_W) {
        const int kc = std::min(2 * PAIR_W, k - at), words = (kc + 1) / 2;
        for (int t = 0; t < tiles; t++)
            pack_pairs<PAIR_M>(a, i0 + t * PAIR_M, std::min(PAIR_M, m - t * PAIR_M), k0 + at, kc, packed + t * size);
        for (int j = 0; j < n; j += PAIR_N) {
            const int cols = std::min(PAIR_N, n - j);
            pack_pairs<PAIR_N>(b, j0 + j, cols, k0 + at, kc, panel);
            for (int t = 0; t < tiles; t++) {
                const int rows = std::min(PAIR_M, m - t * PAIR_M);
                float* to = c + long(t) * PAIR_M * ldc + j;
                if (cols == PAIR_N) {
                    pair_tiles(rows, packed + t * size, panel, words, to, ldc, at == 0);
                    continue;
                }
                float room[PAIR_M * PAIR_N];
                for (int r = 0; at && r < rows; r++) std::memcpy(room + r * PAIR_N, to + r * ldc, sizeof(float) * cols);
                pair_tiles(rows, packed + t * size, panel, words, room, PAIR_N, at == 0);
                for (int r = 0; r < rows; r++) std::memcpy(to + r * ldc, room + r * PAIR_N, sizeof(float) * cols);
            }
        }
    }
}
#else
constexpr bool PAIRS = false;
constexpr int PAIR_M = 1;
struct PairRoom {};
inline void gemm_pairs(const Operand<bf16>&, const Operand<bf16>&, long, int, long, int, long, int, float*, long, PairRoom&) {}
#endif

}  // namespace parl
