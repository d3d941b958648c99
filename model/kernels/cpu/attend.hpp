// Attention of tokens over their own sequence's compressed latent cache, with absorbed queries.
//
// A page holds 16 positions of one layer transposed, [(C + R)][P]: a row is one element of the keys, and the first C rows
// are the values too. A score is one chain of fused multiply-adds over the elements of its key; an output element is VL
// chains over the positions, a lane each, summed at the end in one order. Tokens are taken in groups because they share
// pages in the first-level cache; no bit depends on who is in a group.

#pragma once

#include <vector>

#include "simd.hpp"

namespace parl {

constexpr int P = 16;     // positions a page
constexpr int W = P / VL; // vectors of them
constexpr int GROUP = 4;  // tokens at a time

struct Latents {  // of one layer and sequence
    int C, R;
    float scale;
    const float* const* page;
    int width() const { return C + R; }
};

// out[g][P] = scaled scores of G queries (stride width) with a page. What lies at `next` is wanted then.
template <int G>
__attribute__((noinline)) void score_page(const Latents& m, const float* q, const float* kt, const float* next, float* out) {
    const int width = m.width();
    vf acc[G][W] = {};
    for (int d = 0; d < width; d++) {
        vf k[W];
        for (int j = 0; j < W; j++) k[j] = held(loadv(kt + d * P + j * VL));
        __builtin_prefetch(next + d * P, 0, 2);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            const vf x = q[size_t(g) * width + d] - vf{};
            for (int j = 0; j < W; j++) acc[g][j] = fma(x, k[j], acc[g][j]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int j = 0; j < W; j++) storev(out + g * P + j * VL, acc[g][j] * m.scale);
}

// The scores [blocks][G][P] of a token become exp(score - max); returns 1 / their sum by head.
template <int G>
__attribute__((noinline)) void soften(float* score, int blocks, int pos, float* inverse) {
    for (int g = 0; g < G; g++) {
        float* last = score + (size_t(blocks - 1) * G + g) * P;
        for (int i = pos % P + 1; i < P; i++) last[i] = -INFINITY;
        vf top = vf{} - INFINITY, sum = {};
        for (int b = 0; b < blocks; b++)
            for (int j = 0; j < W; j++) {
                const vf s = loadv(score + (size_t(b) * G + g) * P + j * VL);
                top = top > s ? top : s;
            }
        const vf most = vf{} + widest(top);
        for (int b = 0; b < blocks; b++)
            for (int j = 0; j < W; j++) {
                float* at = score + (size_t(b) * G + g) * P + j * VL;
                const vf s = loadv(at), e = exp_of(s - most), kept = s < -1e30f ? vf{} : e;
                sum += kept;
                storev(at, kept);
            }
        inverse[g] = 1.0f / total(sum);
    }
}

// out[g][c .. c + N) = sum over positions of weight and value.
template <int G, int N>
__attribute__((noinline)) void weigh(const Latents& m, const float* e, int blocks, int c, const float* inverse, float* out) {
    vf acc[G][N] = {};
    for (int b = 0; b < blocks; b++) {
        const float* v = m.page[b] + size_t(c) * P;
        for (int j = 0; j < W; j++) {
            vf value[N];
            for (int n = 0; n < N; n++) value[n] = held(loadv(v + n * P + j * VL));
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) {
                const vf weight = held(loadv(e + (size_t(b) * G + g) * P + j * VL));
                for (int n = 0; n < N; n++) acc[g][n] = fma(weight, value[n], acc[g][n]);
            }
        }
    }
    for (int n = 0; n < N; n++) {
        float sums[G];
        if constexpr (G == 4) {
            const v4 four = totals(acc[0][n], acc[1][n], acc[2][n], acc[3][n]);
            std::memcpy(sums, &four, 16);
        } else {
            for (int g = 0; g < G; g++) sums[g] = total(acc[g][n]);
        }
        for (int g = 0; g < G; g++) out[size_t(g) * m.C + c + n] = sums[g] * inverse[g];
    }
}

// G heads of the tokens at rising positions pos[0 .. n), n <= GROUP. Token t's q at t * ldq: [G][C + R]; out at t * ldo: [G][C].
template <int G>
void attend_heads(const Latents& m, const float* q, long ldq, const int* pos, int n, float* out, long ldo,
                  std::vector<float>& room) {
    const int most = pos[n - 1] / P + 1;
    const size_t size = size_t(most) * P * G;
    if (room.size() < size * n) room.resize(size * n);
    for (int b = 0; b < most; b++)
        for (int t = 0; t < n; t++)
            if (b <= pos[t] / P) score_page<G>(m, q + t * ldq, m.page[b], m.page[std::min(b + 1, most - 1)], room.data() + t * size + size_t(b) * P * G);
    float inverse[GROUP][G];
    for (int t = 0; t < n; t++) soften<G>(room.data() + t * size, pos[t] / P + 1, pos[t], inverse[t]);
    constexpr int N = 3;
    for (int c = 0; c < m.C; c += N)
        for (int t = 0; t < n; t++) {
            const float* e = room.data() + t * size;
            if (c + N <= m.C) weigh<G, N>(m, e, pos[t] / P + 1, c, inverse[t], out + t * ldo);
            else
                for (int i = c; i < m.C; i++) weigh<G, 1>(m, e, pos[t] / P + 1, i, inverse[t], out + t * ldo);
        }
}

// All H heads of such a group.
inline void attend(const Latents& m, int H, const float* q, const int* pos, int n, float* out, std::vector<float>& room) {
    const long ldq = long(H) * m.width(), ldo = long(H) * m.C;
    int h = 0;
    for (; h + 4 <= H; h += 4)
        attend_heads<4>(m, q + size_t(h) * m.width(), ldq, pos, n, out + size_t(h) * m.C, ldo, room);
    for (; h < H; h++)
        attend_heads<1>(m, q + size_t(h) * m.width(), ldq, pos, n, out + size_t(h) * m.C, ldo, room);
}

}  // namespace parl
