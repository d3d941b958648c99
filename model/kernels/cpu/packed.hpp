// Weights in panels, float32, bfloat16 or int8, and their products with rows of numbers.

#pragma once

#include <omp.h>

#include "words.hpp"

namespace parl {

struct Quad {  // S = 4: inputs from 1 to 255, 128 for 0; weights from -127 to 127; a scale for every SHARE numbers of each
    using Number = int8_t;
    static constexpr int S = 4;
    static iv step(iv a, iv x, iv w) {
#if defined(__AVX512VNNI__)
        return iv(_mm512_dpbusd_epi32(__m512i(a), __m512i(x), __m512i(w)));
#else
        for (int s = 0; s < 32; s += 8) a += ((x >> s) & 255) * ((w << (24 - s)) >> 24);
        return a;
#endif
    }
};

constexpr int SHARE = 64;             // numbers under one scale
constexpr int PIECE = 400 << 10;      // bytes of input rows in a piece of work: they stay in the second-level cache
template <class M>
constexpr int TILE = M::S == 4 ? (ROWS - 2) / 2 : ROWS;  // rows; int8 accumulates twice

// A weight [n, k] as panels [words of k][PANEL]; int8 has for each of its groups [PANEL] scales, and what inputs that are
// 128 too high add.
template <class M>
struct Packed {
    int n = 0, k = 0, words = 0, panels = 0, groups = 0;
    Big<word> w;
    std::vector<float> bias, scale;
    std::vector<int32_t> excess;

    bool shape(int n_, int k_) {
        if (n == n_ && k == k_) return true;
        n = n_, k = k_;
        words = (k + M::S - 1) / M::S;
        panels = (n + PANEL - 1) / PANEL;
        groups = M::S == 4 ? (k + SHARE - 1) / SHARE : 0;
        bias.assign(size_t(panels) * PANEL, 0.0f);
        scale.assign(bias.size() * groups, 0.0f);
        excess.assign(bias.size() * groups, 0);
        return w.assign(size_t(panels) * words * PANEL);
    }
    word* panel(int p) const { return w.data() + size_t(p) * words * PANEL; }
    size_t group(int p, int g) const { return (size_t(p) * groups + g) * PANEL; }

    // Row i of src [rows][k] becomes output column(i). VL rows at a time, which lie side by side in their panel.
    template <class T, class Column>
    void put(const T* src, int rows, Column column) {
#pragma omp parallel for schedule(static) if (long(rows) * k > 100000)
        for (int first = 0; first < rows; first += VL) {
            const int count = std::min(VL, rows - first);
            std::vector<word> line(size_t(count) * words, 0);
            for (int i = 0; i < count; i++)
                number(src + size_t(first + i) * k, column(first + i), reinterpret_cast<typename M::Number*>(&line[size_t(i) * words]));
            for (int i = 0; i < count; i++) {
                const int c = column(first + i);
                word* to = panel(c / PANEL) + c % PANEL;
                for (int u = 0; u < words; u++) to[size_t(u) * PANEL] = line[size_t(i) * words + u];
            }
        }
    }

  private:
    template <class T>
    void number(const T* row, int c, typename M::Number* to) {
        if constexpr (M::S != 4) {
            for (int i = 0; i < k; i += VL) store(to + i, load(row + i, k - i), k - i);
        } else {
            for (int g = 0; g < groups; g++) {
                const int begin = g * SHARE, end = std::min(k, begin + SHARE);
                float most = 0;
                for (int i = begin; i < end; i++) most = std::max(most, std::fabs(load1(row + i)));
                const float by = most > 0 ? 127 / most : 0;
                int sum = 0;
                for (int i = begin; i < end; i++) sum += to[i] = int8_t(std::nearbyint(load1(row + i) * by));
                scale[group(c / PANEL, g) + c % PANEL] = most / 127;
                excess[group(c / PANEL, g) + c % PANEL] = -128 * sum;
            }
        }
    }
};

// The tile of words.hpp for int8: x [words][R] with scales [groups][R] times panel p of w.
template <int R>
__attribute__((noinline)) void scaled_tile(const word* x, const float* x_scale, const Packed<Quad>& w, int p, float* out,
                                           const word* ahead, int fetch) {
    vf sum[R][2] = {};
    const word* at = w.panel(p);
    for (int g = 0; g < w.groups; g++, x_scale += R) {
        const size_t group = w.group(p, g);
        iv acc[R][2];
        for (int r = 0; r < R; r++)
            for (int j = 0; j < 2; j++) acc[r][j] = loadw(reinterpret_cast<const word*>(&w.excess[group]) + j * VL);
        const int end = std::min(w.words, (g + 1) * (SHARE / 4));
        for (int u = g * (SHARE / 4); u < end; u++, at += PANEL, x += R) {
            if (u < fetch) {
                __builtin_prefetch(ahead + u * PANEL, 0, 2);
                __builtin_prefetch(ahead + u * PANEL + 16, 0, 2);
            }
            const iv a = held(loadw(at)), b = held(loadw(at + VL));
#pragma GCC unroll 14
            for (int r = 0; r < R; r++) {
                const iv v = held(spread(x[r]));
                acc[r][0] = Quad::step(acc[r][0], v, a);
                acc[r][1] = Quad::step(acc[r][1], v, b);
            }
        }
        for (int j = 0; j < 2; j++) {
            const vf scale = loadv(&w.scale[group] + j * VL);
            for (int r = 0; r < R; r++)
                sum[r][j] = fma(__builtin_convertvector(acc[r][j], vf), scale * x_scale[r], sum[r][j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) storev(out + r * PANEL + j * VL, sum[r][j]);
}
template <int R = TILE<Quad>>
inline void scaled_rows(int rows, const word* x, const float* x_scale, const Packed<Quad>& w, int p, float* out,
                        const word* ahead, int fetch) {
    if constexpr (R > 1)
        if (rows < R) return scaled_rows<R - 1>(rows, x, x_scale, w, p, out, ahead, fetch);
    scaled_tile<R>(x, x_scale, w, p, out, ahead, fetch);
}

// Input rows in tiles, that of row r at word r * words; int8 has the scales of its tiles at r * groups.
struct Input {
    const word* at;
    const float* scale;
};

// Input rows [row, row + rows) for one weight, in tiles of nearly one size.
template <class M>
struct Job {
    const Packed<M>* w;
    int row, rows;
    int tiles() const { return (rows + TILE<M> - 1) / TILE<M>; }
    int first(int t) const { return int(long(rows) * t / tiles()); }
};

// The same for all jobs: use(job, t) for each of their tiles.
template <class M, class Use>
void each_tile(const Job<M>* jobs, int n, Use use) {
    std::vector<int> first(n + 1, 0);
    for (int j = 0; j < n; j++) first[j + 1] = first[j] + jobs[j].tiles();
#pragma omp parallel for schedule(static) if (first[n] > 1)
    for (int i = 0; i < first[n]; i++) {
        const int j = int(std::upper_bound(first.begin(), first.end(), i) - first.begin()) - 1;
        use(jobs[j], i - first[j]);
    }
}

// use(job, panel, first row, rows, sums [rows][PANEL]) for all rows of all jobs, a tile at a time.
template <class M, class Use>
void product(const Job<M>* jobs, int n, Input x, Use use) {
    std::vector<long> first(n + 1, 0);
    auto parts = [](const Job<M>& j) { return int(long(j.rows) * j.w->words * 4 / PIECE) + 1; };
    for (int j = 0; j < n; j++) first[j + 1] = first[j] + long(jobs[j].w->panels) * parts(jobs[j]);
    const int chunk = int(std::max<long>(1, first[n] / (8 * omp_get_max_threads())));
#pragma omp parallel for schedule(dynamic, chunk)
    for (long item = 0; item < first[n]; item++) {
        const int j = int(std::upper_bound(first.begin(), first.end(), item) - first.begin()) - 1;
        const Job<M>& job = jobs[j];
        const Packed<M>& w = *job.w;
        const int count = parts(job), p = int((item - first[j]) % w.panels), part = int((item - first[j]) / w.panels);
        const int begin = job.tiles() * part / count, end = job.tiles() * (part + 1) / count;
        const word* ahead = p + 1 < w.panels ? w.panel(p + 1) : nullptr;
        alignas(64) float out[TILE<M> * PANEL];
        for (int t = begin; t < end; t++) {
            const int at = job.row + job.first(t), rows = job.first(t + 1) - job.first(t);
            const int from = w.words * (t - begin) / (end - begin);
            const int fetch = ahead ? w.words * (t - begin + 1) / (end - begin) - from : 0;
            const word* tile = x.at + size_t(at) * w.words;
            if constexpr (M::S == 4)
                scaled_rows(rows, tile, x.scale + size_t(at) * w.groups, w, p, out, ahead + from * PANEL, fetch);
            else
                tile_rows<M>(rows, tile, w.panel(p), w.panel(p) + VL, PANEL, w.words, out, PANEL, ahead + from * PANEL, fetch);
            use(j, p, at, rows, out);
        }
    }
}

}  // namespace parl
