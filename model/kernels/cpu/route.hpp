// One token's way through the router: scores, exact top-k, weights.

#pragma once

#include <cfloat>
#include <vector>

#include "simd.hpp"

namespace parl {

struct RouteShape {
    int E, K, groups, topk_groups;
    bool norm;
    float scale;
};

struct RouteScratch {
    int blocks;                        // of 16 experts
    std::vector<float> score, biased;  // E rounded up to whole blocks
    std::vector<float> best;           // each block's largest, -inf up to whole vectors
    std::vector<float> group;
    std::vector<char> open;
    explicit RouteScratch(const RouteShape& s)
        : blocks((s.E + 15) / 16), score(blocks * 16), biased(blocks * 16), best((blocks + 7) / 8 * 8, -INFINITY),
          group(s.groups), open(s.groups) {}
};

constexpr float LEAST = -FLT_MAX;  // a NaN or a closed expert: below every score, above what is taken (-inf)

// Closes the experts outside a token's best groups; a group counts the sum of its two best. Ties: the lowest index.
inline void close_groups(const RouteShape& s, RouteScratch& r) {
    int size = s.E / s.groups;
    for (int g = 0; g < s.groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int e = g * size; e < (g + 1) * size; e++) {
            float b = r.biased[e];
            if (b > first) second = first, first = b;
            else if (b > second) second = b;
        }
        r.group[g] = first + second;
        r.open[g] = 0;
    }
    for (int k = 0; k < s.topk_groups; k++) {
        int top = -1;
        for (int g = 0; g < s.groups; g++)
            if (!r.open[g] && (top < 0 || r.group[g] > r.group[top])) top = g;
        r.open[top] = 1;
    }
    for (int g = 0; g < s.groups; g++)
        if (!r.open[g]) std::fill_n(&r.biased[g * size], size, LEAST);
}

// Where x stands first; it must stand somewhere. p has whole vectors of 8.
inline int place(const float* p, float x) {
#if defined(__AVX__)
    for (int i = 0;; i += 8)
        if (int equal = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p + i), _mm256_set1_ps(x), _CMP_EQ_OQ)))
            return i + __builtin_ctz(equal);
#else
    int i = 0;
    while (p[i] != x) i++;
    return i;
#endif
}

inline float largest(const float* block) {  // of 16
    v8 a = load8(block), b = load8(block + 8);
    return high(a > b ? a : b);
}

// The K largest in falling order, equal ones by rising index: the largest of the blocks' largest, then within its block.
inline void choose(const RouteShape& s, RouteScratch& r, int16_t* ids) {
    for (int b = 0; b < r.blocks; b++) r.best[b] = largest(&r.biased[b * 16]);
    for (int k = 0; k < s.K; k++) {
        v8 top = load8(r.best.data());
        for (size_t i = 8; i < r.best.size(); i += 8) {
            v8 other = load8(&r.best[i]);
            top = top > other ? top : other;
        }
        float most = high(top);
        int b = place(r.best.data(), most);
        float* block = &r.biased[b * 16];
        int e = place(block, most);
        ids[k] = int16_t(b * 16 + e);
        block[e] = -INFINITY;
        r.best[b] = largest(block);
    }
}

// forced: K experts to take as they stand, or null or a negative first one to choose.
inline void route_token(const RouteShape& s, RouteScratch& r, const float* logits, const float* bias,
                        const int16_t* forced, int16_t* ids, float* weights, float* scores) {
    for (int at = 0; at < s.E; at += VL) {
        vf score = sigmoid(loadf(logits + at, s.E - at));
        vf biased = score + loadf(bias + at, s.E - at);
        storev(&r.score[at], score);
        storev(&r.biased[at], biased == biased ? biased : vf{} + LEAST);
    }
    for (int e = s.E; e < r.blocks * 16; e++) r.biased[e] = -INFINITY;
    if (forced && forced[0] >= 0) {
        std::memcpy(ids, forced, sizeof(int16_t) * s.K);
    } else {
        if (s.groups > 1) close_groups(s, r);
        choose(s, r, ids);
    }
    float total = 0;
    for (int k = 0; k < s.K; k++) total += scores[k] = r.score[ids[k]];
    float scale = s.scale * (s.norm ? 1.0f / (total + 1e-20f) : 1.0f);
    for (int k = 0; k < s.K; k++) weights[k] = scores[k] * scale;
}

}  // namespace parl
