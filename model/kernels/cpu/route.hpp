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
    std::vector<float> group, eight;
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

inline void weigh(const RouteShape& s, const float* score, const int16_t* ids, float* weights, float* scores) {
    float total = 0;
    for (int k = 0; k < s.K; k++) total += scores[k] = score[ids[k]];
    float scale = s.scale * (s.norm ? 1.0f / (total + 1e-20f) : 1.0f);
    for (int k = 0; k < s.K; k++) weights[k] = scores[k] * scale;
}

inline uint32_t bits(i8v mask) {
#if defined(__AVX__)
    return uint32_t(_mm256_movemask_ps(__m256(mask)));
#else
    uint32_t out = 0;
    for (int i = 0; i < 8; i++) out |= uint32_t(mask[i] < 0) << i;
    return out;
#endif
}

// The same as choose for K <= 8, where most[i] is the largest of the experts i, i + 8, i + 16 ...: eight experts are no
// smaller than the least of these, so only those that reach it are candidates, about 21 of 384. A candidate's place is the
// number of better ones; nothing waits for anything. False where there are more than 64.
inline bool choose_by_rank(const RouteShape& s, const RouteScratch& r, v8 most, int16_t* ids) {
    const v8 bound = v8{} - high(-most);
    float value[72];
    int expert[64], n = 0;
    for (int e = 0; e < r.blocks * 16; e += 64) {
        uint64_t found = 0;
        for (int i = 0; i < std::min(64, r.blocks * 16 - e); i += 8)
            found |= uint64_t(bits(load8(&r.biased[e + i]) >= bound)) << i;
        if (n + __builtin_popcountll(found) > 64) return false;
        for (; found; found &= found - 1) {
            expert[n] = e + __builtin_ctzll(found);
            value[n] = r.biased[expert[n]];
            n++;
        }
    }
    store8(value + n, v8{} - INFINITY);
    int16_t place[65];
    for (int i = 0; i < n; i++) {
        const v8 x = v8{} + value[i];
        uint64_t better = 0, equal = 0;
        for (int j = 0; j < n; j += 8) {
            better |= uint64_t(bits(load8(value + j) > x)) << j;
            equal |= uint64_t(bits(load8(value + j) == x)) << j;
        }
        place[__builtin_popcountll(better | (equal & ((uint64_t(1) << i) - 1)))] = int16_t(expert[i]);
    }
    std::memcpy(ids, place, sizeof(int16_t) * s.K);
    return true;
}

// Eight experts' scores, stored, and what they are chosen by; `left` of them exist.
inline v8 score_of(const float* logits, const float* bias, int left, float* score) {
    const v8 y = sigmoid(left >= 8 ? load8(logits) : part8(logits, left));
    const v8 biased = y + (left >= 8 ? load8(bias) : part8(bias, left));
    store8(score, y);
    return biased == biased ? biased : v8{} + LEAST;
}

// forced: K experts to take as they stand, or null or a negative first one to choose.
inline void route_token(const RouteShape& s, RouteScratch& r, const float* logits, const float* bias,
                        const int16_t* forced, int16_t* ids, float* weights, float* scores) {
    v8 most = v8{} - INFINITY;
    float *score = r.score.data(), *all = r.biased.data();
    for (int at = 0; at < s.E; at += 8) {
        const v8 biased = at + 8 <= s.E ? score_of(logits + at, bias + at, 8, score + at)
                                        : score_of(logits + at, bias + at, s.E - at, score + at);
        store8(all + at, biased);
        most = most > biased ? most : biased;
    }
    for (int e = s.E; e < r.blocks * 16; e++) r.biased[e] = -INFINITY;
    if (forced && forced[0] >= 0) {
        std::memcpy(ids, forced, sizeof(int16_t) * s.K);
    } else if (s.groups > 1) {
        close_groups(s, r);
        choose(s, r, ids);
    } else if (s.E % 8 || s.K > 8 || !choose_by_rank(s, r, most, ids)) {  // padding would count as experts
        choose(s, r, ids);
    }
    weigh(s, r.score.data(), ids, weights, scores);
}

// Eight tokens at once, a lane each: an expert enters a token's list of the K best where it is better than one in it, so
// equal ones stay in their order. score has room for [8][E up to eights]. For few experts; many enter seldom and cost all.
template <int K>
void route_eight(const RouteShape& s, const float* logits, const float* bias, float* score, int16_t* ids) {
    const int width = (s.E + 7) / 8 * 8;
    v8 best[K];
    i8v id[K] = {};
    for (int k = 0; k < K; k++) best[k] = v8{} - INFINITY;
    for (int e = 0; e < s.E; e += 8) {
        const int left = s.E - e;
        v8 x[8];
        for (int t = 0; t < 8; t++)
            x[t] = score_of(logits + long(t) * s.E + e, bias + e, left, score + long(t) * width + e);
        transpose8(x);
        for (int j = 0; j < std::min(8, left); j++) {
            i8v better[K];
            for (int k = 0; k < K; k++) better[k] = x[j] > best[k];
            for (int k = K - 1; k > 0; k--) {
                best[k] = better[k] ? (better[k - 1] ? best[k - 1] : x[j]) : best[k];
                id[k] = better[k] ? (better[k - 1] ? id[k - 1] : i8v{} + (e + j)) : id[k];
            }
            best[0] = better[0] ? x[j] : best[0];
            id[0] = better[0] ? i8v{} + (e + j) : id[0];
        }
    }
    for (int k = 0; k < K; k++)
        for (int t = 0; t < 8; t++) ids[t * K + k] = int16_t(id[k][t]);
}

// n tokens, see route_token.
template <int K = 8>
void route_tokens(const RouteShape& s, RouteScratch& r, int n, const float* logits, const float* bias,
                  const int16_t* forced, int16_t* ids, float* weights, float* scores) {
    int t = 0;
    if constexpr (K > 0) {
        if (s.K < K) return route_tokens<K - 1>(s, r, n, logits, bias, forced, ids, weights, scores);
        const long width = (s.E + 7) / 8 * 8;
        const bool lanes = s.K == K && s.groups == 1 && s.E <= 64;
        if (lanes) r.eight.resize(8 * width);
        for (; lanes && t + 8 <= n; t += 8) {
            route_eight<K>(s, logits + long(t) * s.E, bias, r.eight.data(), ids + t * K);
            for (int i = t; i < t + 8; i++) {
                const int16_t* given = forced ? forced + i * K : nullptr;
                if (given && given[0] >= 0) std::memcpy(ids + i * K, given, sizeof(int16_t) * K);
                weigh(s, r.eight.data() + (i - t) * width, ids + i * K, weights + i * K, scores + i * K);
            }
        }
    }
    for (; t < n; t++) {
        const long at = long(t) * s.K;
        route_token(s, r, logits + long(t) * s.E, bias, forced ? forced + at : nullptr, ids + at, weights + at, scores + at);
    }
}

}  // namespace parl
