// Batch-invariant decoder of the Llama and Qwen shapes on CPU: grouped-query attention over a paged cache, SwiGLU or a
// mixture of SwiGLU experts, numbers in float32 or bfloat16, weights also in int8.
//
// One call feeds T tokens of any mix of sequences through all layers. bfloat16 is rounded where transformers rounds it:
// after each product, norm, rotation and sum; inside of them it is float32. int8 weights and their inputs have a scale
// for every 64 numbers; everything else is bfloat16.
//
// Legend: T tokens, D hidden, H heads, KV key-value heads, E experts, K experts a token, I expert width, P positions a page.

#include <atomic>
#include <memory>

#include "gqa_weights.hpp"

using namespace parl;

namespace {

constexpr int GROUP = 16;  // tokens of one sequence that attend together

template <class A>
void rms_norm(const A* x, const A* gain, int d, float eps, A* y) {
    vf squares = {};
    for (int i = 0; i < d; i += VL) {
        const vf v = load(x + i, d - i);
        squares = fma(v, v, squares);
    }
    const float inverse = 1.0f / std::sqrt(total(squares) / d + eps);
    for (int i = 0; i < d; i += VL) {
        const vf v = kept(A{}, load(x + i, d - i) * inverse);
        store(y + i, v * load(gain + i, d - i), d - i);
    }
}

// Halves (i, i + dim / 2) of one head, as Llama stores them.
template <class A>
void rotate(A* x, const A* cosines, const A* sines, int half) {
    for (int i = 0; i < half; i += VL) {
        const int left = half - i;
        const vf a = load(x + i, left), b = load(x + half + i, left), c = load(cosines + i, left), s = load(sines + i, left);
        const vf first = kept(A{}, a * c) - kept(A{}, b * s), second = kept(A{}, b * c) + kept(A{}, a * s);
        store(x + i, first, left);
        store(x + half + i, second, left);
    }
}

template <class M, class C>
struct Model : Held<M, C> {
    using Parent = Held<M, C>;
    using A = typename C::Number;
    using typename Parent::Layer;
    using Parent::vocab, Parent::D, Parent::layers, Parent::H, Parent::KV, Parent::dim, Parent::width, Parent::E, Parent::K;
    using Parent::I, Parent::norm_topk, Parent::eps, Parent::scale, Parent::routed_layers, Parent::layer, Parent::layout;
    using Parent::cached, Parent::head, Parent::embed, Parent::final_norm, Parent::cosines, Parent::sines;

    struct Rows {  // of numbers, as words of C; the space between two keeps them out of each other's cache lines
        Room<word> room;
        long ld = 0;
        A* fit(long rows, int width) {
            ld = align_up(width, VL) / C::S + 16;
            return reinterpret_cast<A*>(room.at_least(rows * ld));
        }
        A* row(long t) { return reinterpret_cast<A*>(room.at_least(0) + t * ld); }
    };
    Rows x, h, qkv, mixed, act, results;
    Room<word> tiles;
    Room<float> scales, gates, route_weight;
    std::vector<AttendRoom> attend_room;

    using Parent::Held;

    // ------------------------------------------------------------ products

    // Rows row(i) for all jobs, in tiles as W's weights want them. n: of them.
    template <class W, class RowOf>
    Input tiled(const Job<W>* jobs, int count, long n, RowOf row) {
        const int words = jobs[0].w->words, groups = jobs[0].w->groups;
        word* out = tiles.at_least(n * words);
        float* scale = scales.at_least(n * groups);
        each_tile(jobs, count, [&](const Job<W>& job, int t) {
            const int at = job.row + job.first(t), rows = job.first(t + 1) - job.first(t);
            word* tile = out + long(at) * words;
            if constexpr (W::S == 4) {
                const int ld = words + VL;
                std::vector<word> whole(size_t(rows) * ld);
                for (int r = 0; r < rows; r++)
                    quantise(row(at + r), job.w->k, reinterpret_cast<uint8_t*>(&whole[r * ld]), scale + at * groups + r, rows);
                turn([&](int r) { return whole.data() + r * ld; }, rows, words, tile);
            } else {
                turn([&](int r) { return reinterpret_cast<const word*>(row(at + r)); }, rows, words, tile);
            }
        });
        return {out, scale};
    }
    template <class W>
    Input tiled(const Job<W>& job, Rows& from) {
        return tiled(&job, 1, job.rows, [&](int i) { return from.row(i); });
    }

    // A row as whole numbers 128 +- 127, and what each group is to be multiplied with, `apart` from the next.
    static void quantise(const A* row, int n, uint8_t* to, float* scale, int apart) {
        for (int begin = 0; begin < n; begin += SHARE, scale += apart) {
            const int end = std::min(n, begin + SHARE);
            vf most = {};
            for (int i = begin; i < end; i += VL) {
                const vf v = load(row + i, end - i), size = v < 0.0f ? -v : v;
                most = most > size ? most : size;
            }
            const float high = widest(most), by = high > 0 ? 127 / high : 0;
            *scale = high / 127;
            for (int i = begin; i < end; i += VL) {
                const vf v = load(row + i, end - i) * by;
                const iv q = __builtin_convertvector(v + (v < 0.0f ? vf{} - 0.5f : vf{} + 0.5f), iv) + 128;
#if defined(__AVX512F__)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(__m512i(q)));
#else
                for (int j = 0; j < VL; j++) to[i + j] = uint8_t(q[j]);
#endif
            }
        }
    }

    // Vector j of one row's sums for panel p, with bias.
    static vf finished(const Packed<M>& w, int p, int j, const float* sums) {
        return kept(A{}, loadv(sums + j * VL) + loadv(&w.bias[size_t(p) * PANEL + j * VL]));
    }

    // y[t] = W x[t], or y[t] += W x[t].
    void linear(const Packed<M>& w, Rows& from, int rows, Rows& y, bool add) {
        const Job<M> job{&w, 0, rows};
        product(&job, 1, tiled(job, from), [&](int, int p, int at, int n, const float* sums) {
            for (int r = 0; r < n; r++)
                for (int j = 0; j < 2; j++) {
                    const int c = p * PANEL + j * VL, left = w.n - c;
                    if (left <= 0) continue;
                    A* to = y.row(at + r) + c;
                    vf v = finished(w, p, j, sums + r * PANEL);
                    if (add) v = load(to, left) + v;
                    store(to, v, left);
                }
        });
    }

    // act[t] = silu(gate) up, from panels whose first vector is of gates and whose second is of ups.
    void gated(const Job<M>* jobs, int count, Input in, int width_) {
        product(jobs, count, in, [&](int job, int p, int at, int n, const float* sums) {
            const Packed<M>& w = *jobs[job].w;
            for (int r = 0; r < n; r++) {
                const vf g = finished(w, p, 0, sums + r * PANEL);
                const vf u = finished(w, p, 1, sums + r * PANEL);
                const vf silu = kept(A{}, g / (1.0f + exp_of(-g)));
                store(act.row(at + r) + p * VL, silu * u, width_ - p * VL);
            }
        });
    }

    // ------------------------------------------------------------ layers

    void norm(Rows& from, const std::vector<A>& gain, int rows, Rows& to) {
        to.fit(rows, D);
#pragma omp parallel for schedule(static) if (rows > 8)
        for (int t = 0; t < rows; t++) rms_norm(from.row(t), gain.data(), D, eps, to.row(t));
    }

    void attention(Layer& l, int index, const Batch& b, const std::vector<int>& first) {
        const int T = b.T, shared = H / KV;
        qkv.fit(T, (H + 2 * KV) * dim);
        linear(l.qkv, h, T, qkv, false);
#pragma omp parallel for schedule(static) if (T > 8)
        for (int t = 0; t < T; t++) {
            A *q = qkv.row(t), *k = q + H * dim, *v = k + KV * dim;
            const A *c = &cosines[size_t(b.pos[t]) * (dim / 2)], *s = &sines[size_t(b.pos[t]) * (dim / 2)];
            for (int i = 0; i < H + KV; i++) {
                const std::vector<A>& gain = i < H ? l.q_norm : l.k_norm;
                if (!gain.empty()) rms_norm(q + i * dim, gain.data(), dim, eps, q + i * dim);
                rotate(q + i * dim, c, s, dim / 2);
            }
            for (int i = 0; i < KV; i++)
                layout.write(cached(index, b.page(t), i), b.pos[t] % P, k + i * dim, v + i * dim);
        }
        mixed.fit(T, H * dim);
        const int items = int(first.size() - 1) * KV;
        attend_room.resize(omp_get_max_threads());
#pragma omp parallel for schedule(dynamic, 1)
        for (int item = 0; item < items; item++) {
            AttendRoom& room = attend_room[omp_get_thread_num()];
            const int kv = item % KV, t = first[item / KV], n = first[item / KV + 1] - t, last = b.pos[t + n - 1];
            const int* table = b.tables + size_t(b.seq[t]) * b.table_stride;
            const word* page[8192 / P + 1];
            std::vector<const word*> many;
            const word** at = page;
            if (last / P > 8192 / P) many.resize(last / P + 1), at = many.data();
            for (int i = 0; i <= last / P; i++) at[i] = cached(index, table[i], kv);
            const int words = layout.words();
            word* query = room.query.at_least(size_t(n) * shared * (words + 1));
            int* pos = reinterpret_cast<int*>(query + size_t(n) * shared * words);
            for (int i = 0; i < n * shared; i++) {
                const A* q = qkv.row(t + i / shared) + (kv * shared + i % shared) * dim;
                const int begin = i / ROWS * ROWS, rows = std::min(ROWS, n * shared - begin);
                word* to = query + size_t(begin) * words + i - begin;
                for (int u = 0; u < words; u++) std::memcpy(to + u * rows, q + u * C::S, 4);
                pos[i] = b.pos[t + i / shared];
            }
            attend(layout, at, query, pos, n * shared, l.window, scale, room);
            const float* out = room.out.at_least(0);
            for (int i = 0; i < n * shared; i++)
                for (int d = 0; d < dim; d += VL)
                    store(mixed.row(t + i / shared) + (kv * shared + i % shared) * dim + d,
                          loadv(out + size_t(i) * layout.wide() + d), dim - d);
        }
        linear(l.o, mixed, T, x, true);
    }

    void dense(Layer& l, int T) {
        act.fit(T, width);
        const Job<M> job{&l.gate_up, 0, T};
        gated(&job, 1, tiled(job, h), width);
        linear(l.down, act, T, x, true);
    }

    // The K likeliest experts in falling order, equal ones by rising index, and their weights.
    void choose(float* logit, int16_t* ids, float* weights) {
        auto one = [](float v) { return kept(A{}, vf{} + v)[0]; };
        float high = -INFINITY, sum = 0, taken = 0;
        for (int e = 0; e < E; e++) high = std::max(high, logit[e] = one(logit[e]));
        for (int e = 0; e < E; e++) sum += logit[e] = std::exp(logit[e] - high);
        for (int k = 0; k < K; k++) {
            int best = 0;
            for (int e = 1; e < E; e++)
                if (logit[e] > logit[best]) best = e;
            ids[k] = int16_t(best);
            taken += weights[k] = logit[best] / sum;
            logit[best] = -1;
        }
        for (int k = 0; k < K; k++) weights[k] = one(norm_topk ? weights[k] / taken : weights[k]);
    }

    void experts(Layer& l, const Batch& b) {
        const int T = b.T;
        float *logits = gates.at_least(size_t(T) * E), *weight = route_weight.at_least(size_t(T) * K);
        const Job<C> job{&l.gate, 0, T};
        product(&job, 1, tiled(job, h), [&](int, int p, int at, int n, const float* sums) {
            for (int r = 0; r < n; r++)
                std::memcpy(logits + size_t(at + r) * E + p * PANEL, sums + r * PANEL,
                            sizeof(float) * std::min(PANEL, E - p * PANEL));
        });
        std::vector<int16_t> chosen(size_t(T) * K);
        std::vector<int> count(E + 1, 0), slot(size_t(T) * K);
        for (int t = 0; t < T; t++) {
            int16_t* ids = &chosen[size_t(t) * K];
            choose(logits + size_t(t) * E, ids, weight + size_t(t) * K);
            for (int k = 0; k < K; k++) count[ids[k] + 1]++;
            int16_t* r = b.routes + ((size_t(b.page(t)) * P + b.pos[t] % P) * routed_layers + l.routed) * K;
            std::memcpy(r, ids, sizeof(int16_t) * K);
        }
        for (int e = 0; e < E; e++) count[e + 1] += count[e];
        std::vector<int> next(count.begin(), count.end() - 1);
        std::vector<int> source(T * K);
        for (int i = 0; i < T * K; i++) source[slot[i] = next[chosen[i]]++] = i / K;
        std::vector<Job<M>> up, down;
        for (int e = 0; e < E; e++)
            if (count[e + 1] > count[e]) {
                up.push_back({&l.expert_gate_up[e], count[e], count[e + 1] - count[e]});
                down.push_back({&l.expert_down[e], count[e], count[e + 1] - count[e]});
            }
        act.fit(long(T) * K, I);
        const int active = int(up.size());
        gated(up.data(), active, tiled(up.data(), active, long(T) * K, [&](int i) { return h.row(source[i]); }), I);
        results.fit(long(T) * K, D);
        const Input in = tiled(down.data(), active, long(T) * K, [&](int i) { return act.row(i); });
        product(down.data(), active, in, [&](int j, int p, int at, int n, const float* sums) {
            for (int r = 0; r < n; r++)
                for (int v = 0; v < 2; v++)
                    if (const int c = p * PANEL + v * VL; c < D)
                        store(results.row(at + r) + c, finished(*down[j].w, p, v, sums + r * PANEL), D - c);
        });
#pragma omp parallel for schedule(static) if (T > 8)
        for (int t = 0; t < T; t++)
            for (int d = 0; d < D; d += VL) {
                vf sum = {};
                for (int k = 0; k < K; k++)
                    sum = fma(load(results.row(slot[size_t(t) * K + k]) + d, D - d), vf{} + weight[size_t(t) * K + k], sum);
                A* to = x.row(t) + d;
                store(to, load(to, D - d) + kept(A{}, sum), D - d);
            }
    }

    bool forward(const Batch& b, int n_out, const int* out_rows, float* logits) override {
        std::vector<int> first;
        for (int t = 0; t < b.T; t++)
            if (first.empty() || t - first.back() == GROUP || b.seq[t] != b.seq[t - 1] || b.pos[t] <= b.pos[t - 1])
                first.push_back(t);
        first.push_back(b.T);
        x.fit(b.T, D);
        for (int t = 0; t < b.T; t++) std::memcpy(x.row(t), &embed[size_t(b.tokens[t]) * D], sizeof(A) * D);
        for (int i = 0; i < layers; i++) {
            Layer& l = layer[i];
            norm(x, l.input_norm, b.T, h);
            attention(l, i, b, first);
            norm(x, l.post_norm, b.T, h);
            if (l.routed < 0) dense(l, b.T);
            else experts(l, b);
        }
        h.fit(n_out, D);
        for (int r = 0; r < n_out; r++) rms_norm(x.row(out_rows[r]), final_norm.data(), D, eps, h.row(r));
        const Job<M> job{&head, 0, n_out};
        std::atomic<bool> broken{false};
        product(&job, 1, tiled(job, h), [&](int, int p, int at, int n, const float* sums) {
            vf zero = {};
            for (int r = 0; r < n; r++)
                for (int j = 0; j < 2; j++)
                    if (const int c = p * PANEL + j * VL; c < vocab) {
                        const vf v = finished(head, p, j, sums + r * PANEL);
                        zero += v - v;
                        storef(logits + size_t(at + r) * vocab + c, v, vocab - c);
                    }
            if (!(total(zero) == 0)) broken = true;
        });
        return !broken;
    }
};

}  // namespace

extern "C" {

// kind: 0 float32, 1 bfloat16, 2 bfloat16 with int8 weights. windows [layers]: positions that a token sees, 0 = all before
// it. sparse [layers]: whether there are experts. Null where shape_bytes is another shape's or memory ends.
Base* parl_gqa_new(const GqaShape* shape, int shape_bytes, const int* windows, const int* sparse) {
    if (shape_bytes != int(sizeof(GqaShape))) return nullptr;
    std::unique_ptr<Base> m;
    if (shape->kind == 0) m.reset(new Model<Float, Float>(*shape, windows, sparse));
    else if (shape->kind == 1) m.reset(new Model<Pair, Pair>(*shape, windows, sparse));
    else m.reset(new Model<Quad, Pair>(*shape, windows, sparse));
    return m->cache() ? m.release() : nullptr;
}

void parl_gqa_free(Base* m) { delete m; }

// name: transformers' inside a layer, or with layer -1 "embed", "norm", "head", "cos" and "sin" [max_pos][dim / 2].
// half: w is bfloat16, else float32. Returns 0, or 1 if the name is unknown or memory ends.
int parl_gqa_set(Base* m, int layer, const char* name, const void* w, int half) {
    return m->set(layer, name, Source{w, half != 0}) ? 0 : 1;
}

// Feeds T tokens; writes logits [n_out][vocab] for the batch rows in out_rows. Returns 0, or 1 if one is not finite: the
// cache is then emptied, since a zero weight times what is not finite is not zero.
int parl_gqa_forward(Base* m, int T, const int* tokens, const int* pos, const int* seq, const int* tables,
                     int table_stride, int16_t* routes, int n_out, const int* out_rows, float* logits) {
    if (m->forward(Batch{T, tokens, pos, seq, tables, table_stride, routes}, n_out, out_rows, logits)) return 0;
    m->cache();
    return 1;
}
}
