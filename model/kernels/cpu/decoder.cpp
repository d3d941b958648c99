// Batch-invariant decoder of the K2.5-shaped policy on CPU, fp32.
//
// One call feeds T tokens of any mix of sequences (prefill chunks and decode steps alike) through all layers, with the
// compressed latent cache in pages of 16 positions. Every output element is accumulated in one fixed order by one
// thread, whatever else is in the batch and however many threads run: a token's result has the same bits alone, in a
// batch of 7 or of 4096.
//
// Legend: T tokens, D hidden, H heads, C kv_lora_rank, R qk_rope_head_dim, N qk_nope_head_dim, V v_head_dim,
// E experts, K experts a token, I expert width, P positions a page (16).
// A page holds, per layer, the latents and rotary keys transposed: [(C + R)][P].

#include <memory>
#include <string>
#include <vector>

#include "attend.hpp"
#include "route.hpp"

using namespace parl;

namespace {

constexpr int NV = VL == 16 ? 4 : 2, MR = 6;
constexpr int PANEL = VL * NV;

// Floats that are written before they are read: a std::vector would set them to zero first.
struct Room {
    std::unique_ptr<float[]> at;
    explicit Room(size_t n) : at(new float[n]) {}
    float* data() { return at.get(); }
    float& operator[](size_t i) { return at[i]; }
};

// A weight [n, k] stored as panels [n / PANEL][k][PANEL], so that a tile streams it once.
struct Linear {
    int n = 0, k = 0;
    std::vector<float> w;
    void pack(const float* src, int n_, int k_, long row_stride, long col_stride) {
        n = n_;
        k = k_;
        int panels = (n + PANEL - 1) / PANEL;
        w.assign(size_t(panels) * k * PANEL, 0.0f);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < k; j++)
                w[(size_t(i / PANEL) * k + j) * PANEL + i % PANEL] = src[i * row_stride + j * col_stride];
    }
};

template <int ROWS>
inline void tile(const float* x, long ldx, const float* w, int k, float* y, long ldy, int cols) {
    vf acc[ROWS][NV];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < NV; j++) acc[r][j] = vf{};
    for (int i = 0; i < k; i++) {
        vf wv[NV];
        for (int j = 0; j < NV; j++) wv[j] = held(loadv(w + size_t(i) * PANEL + j * VL));
        for (int r = 0; r < ROWS; r++) {
            vf xv = x[r * ldx + i] - vf{};  // minus, not plus: compilers know that it changes nothing
            for (int j = 0; j < NV; j++) acc[r][j] = fma(xv, wv[j], acc[r][j]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        if (cols == PANEL) {
            for (int j = 0; j < NV; j++) storev(y + r * ldy + j * VL, acc[r][j]);
        } else {
            std::memcpy(y + r * ldy, &acc[r], sizeof(float) * cols);
        }
}

// y[t, :n] = W x[t, :k] for every row t.
void linear(const Linear& lin, const float* x, long ldx, int rows, float* y, long ldy) {
    int panels = (lin.n + PANEL - 1) / PANEL, tiles = (rows + MR - 1) / MR;
#pragma omp parallel for collapse(2) schedule(static) if (long(tiles) * panels > 16)
    for (int p = 0; p < panels; p++)
        for (int b = 0; b < tiles; b++) {
            int r = b * MR, left = std::min(MR, rows - r), cols = std::min(PANEL, lin.n - p * PANEL);
            const float* w = lin.w.data() + size_t(p) * lin.k * PANEL;
            const float* xr = x + r * ldx;
            float* yr = y + r * ldy + p * PANEL;
            switch (left) {
                case 1: tile<1>(xr, ldx, w, lin.k, yr, ldy, cols); break;
                case 2: tile<2>(xr, ldx, w, lin.k, yr, ldy, cols); break;
                case 3: tile<3>(xr, ldx, w, lin.k, yr, ldy, cols); break;
                case 4: tile<4>(xr, ldx, w, lin.k, yr, ldy, cols); break;
                case 5: tile<5>(xr, ldx, w, lin.k, yr, ldy, cols); break;
                default: tile<6>(xr, ldx, w, lin.k, yr, ldy, cols);
            }
        }
}

void rms_norm(const float* x, long ldx, const float* gain, int d, float eps, int rows, float* y, long ldy) {
    for (int t = 0; t < rows; t++) {
        const float* xr = x + t * ldx;
        float* yr = y + t * ldy;
        vf squares = {};
        for (int i = 0; i < d; i += VL) {
            const vf v = loadf(xr + i, d - i);
            squares = fma(v, v, squares);
        }
        float inv = 1.0f / std::sqrt(total(squares) / d + eps);
        for (int i = 0; i < d; i += VL) storef(yr + i, loadf(xr + i, d - i) * inv * loadf(gain + i, d - i), d - i);
    }
}

inline void add(float* x, const float* y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

inline void swiglu(const float* gate_up, int width, float* out) {  // out may not alias
    for (int i = 0; i < width; i += VL) {
        vf g = loadf(gate_up + i, width - i), u = loadf(gate_up + width + i, width - i);
        storef(out + i, g / (1.0f + exp_of(-g)) * u, width - i);
    }
}

struct Layer {
    std::vector<float> input_norm, q_norm, kv_norm, post_norm, bias;
    Linear q_a, q_b, kv_a, o, gate_up, down, gate, shared_gate_up, shared_down;
    std::vector<Linear> key_up, value_up, expert_gate_up, expert_down;
};

struct DecoderShape {  // field for field _Shape of model/kimi/decoder.py
    int vocab, D, layers, dense, dense_width, H;
    int q_rank;  // 0: no latent for queries
    int C, N, R, V, E, K, shared, I, max_pos, groups, topk_groups, norm_topk;
    float eps, latent_eps, scaling, softmax_scale, rope_theta;
};

struct Decoder : DecoderShape {
    std::vector<float> embed, final_norm, rope_cos, rope_sin;
    Linear head;
    std::vector<Layer> layer;
    long page_layer() const { return long(C + R) * P; }
};

void fused_rows(const float* gate, const float* up, int width, int k, Linear& out) {
    std::vector<float> both(size_t(2) * width * k);
    std::memcpy(both.data(), gate, sizeof(float) * width * k);
    std::memcpy(both.data() + size_t(width) * k, up, sizeof(float) * width * k);
    out.pack(both.data(), 2 * width, k, k, 1);
}

void rotate(float* x, int r, const float* cosv, const float* sinv) {  // interleaved pairs, as DeepSeek-V3 stores them
    for (int i = 0; i < r / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosv[i] - b * sinv[i];
        x[2 * i + 1] = a * sinv[i] + b * cosv[i];
    }
}

struct Batch {
    int T;
    const int *tokens, *pos, *seq, *tables;
    int table_stride;
    float* pages;
    int16_t* routes;  // [page][P][moe layers][K] or null
};

// Where runs of up to GROUP tokens of one sequence at rising positions begin, and the end of the last.
std::vector<int> groups(const Batch& b) {
    std::vector<int> first;
    for (int t = 0; t < b.T; t++)
        if (first.empty() || t - first.back() == GROUP || b.seq[t] != b.seq[t - 1] || b.pos[t] <= b.pos[t - 1])
            first.push_back(t);
    first.push_back(b.T);
    return first;
}

void attention(const Decoder& m, const Layer& l, int index, const Batch& b, const float* h, float* out) {
    int T = b.T, qd = m.H * (m.N + m.R), width = m.C + m.R;
    Room qa(size_t(T) * m.q_rank), q(size_t(T) * qd), kv(size_t(T) * width), ql(size_t(T) * m.H * width),
        lat(size_t(T) * m.H * m.C), o(size_t(T) * m.H * m.V);
    if (m.q_rank) {
        linear(l.q_a, h, m.D, T, qa.data(), m.q_rank);
        rms_norm(qa.data(), m.q_rank, l.q_norm.data(), m.q_rank, m.latent_eps, T, qa.data(), m.q_rank);
        linear(l.q_b, qa.data(), m.q_rank, T, q.data(), qd);
    } else {
        linear(l.q_b, h, m.D, T, q.data(), qd);  // no latent for queries: q_proj
    }
    linear(l.kv_a, h, m.D, T, kv.data(), width);
    rms_norm(kv.data(), width, l.kv_norm.data(), m.C, m.latent_eps, T, kv.data(), width);
    for (int t = 0; t < T; t++) {
        const float* cosv = &m.rope_cos[size_t(b.pos[t]) * m.R / 2];
        const float* sinv = &m.rope_sin[size_t(b.pos[t]) * m.R / 2];
        float* row = &kv[size_t(t) * width];
        rotate(row + m.C, m.R, cosv, sinv);
        int page = b.tables[size_t(b.seq[t]) * b.table_stride + b.pos[t] / P], slot = b.pos[t] % P;
        float* kt = b.pages + (size_t(page) * m.layers + index) * m.page_layer();
        for (int d = 0; d < width; d++) kt[d * P + slot] = row[d];
        for (int hd = 0; hd < m.H; hd++) {
            float* qh = &q[size_t(t) * qd + size_t(hd) * (m.N + m.R)];
            rotate(qh + m.N, m.R, cosv, sinv);
            std::memcpy(&ql[(size_t(t) * m.H + hd) * width + m.C], qh + m.N, sizeof(float) * m.R);
        }
    }
    for (int hd = 0; hd < m.H; hd++)
        linear(l.key_up[hd], q.data() + size_t(hd) * (m.N + m.R), qd, T, ql.data() + size_t(hd) * width, m.H * width);
    std::vector<int> first = groups(b);
#pragma omp parallel
    {
        std::vector<float> room;
        std::vector<const float*> page;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < first.size() - 1; i++) {
            int t = first[i], n = first[i + 1] - t, blocks = b.pos[t + n - 1] / P + 1;
            const int* table = b.tables + size_t(b.seq[t]) * b.table_stride;
            page.resize(blocks);
            for (int j = 0; j < blocks; j++) page[j] = b.pages + (size_t(table[j]) * m.layers + index) * m.page_layer();
            attend({m.C, m.R, m.softmax_scale, page.data()}, m.H, &ql[size_t(t) * m.H * width], b.pos + t, n,
                   &lat[size_t(t) * m.H * m.C], room);
        }
    }
    for (int hd = 0; hd < m.H; hd++)
        linear(l.value_up[hd], lat.data() + size_t(hd) * m.C, m.H * m.C, T, o.data() + size_t(hd) * m.V, m.H * m.V);
    linear(l.o, o.data(), m.H * m.V, T, out, m.D);
}

void mlp(const Linear& gate_up, const Linear& down, int width, const float* x, int D, int rows, float* out) {
    Room gu(size_t(rows) * 2 * width), act(size_t(rows) * width);
    linear(gate_up, x, D, rows, gu.data(), 2 * width);
    for (int t = 0; t < rows; t++) swiglu(&gu[size_t(t) * 2 * width], width, &act[size_t(t) * width]);
    linear(down, act.data(), width, rows, out, D);
}

void experts(const Decoder& m, const Layer& l, int moe_index, const Batch& b, const float* h, float* out) {
    int T = b.T, moe_layers = m.layers - m.dense;
    RouteShape shape{m.E, m.K, m.groups, m.topk_groups, m.norm_topk, m.scaling};
    RouteScratch room(shape);
    Room logits(size_t(T) * m.E), weight(size_t(T) * m.K), score(size_t(T) * m.K);
    std::vector<int16_t> chosen(size_t(T) * m.K);
    std::vector<int> count(m.E + 1, 0), slot(size_t(T) * m.K);
    linear(l.gate, h, m.D, T, logits.data(), m.E);
    route_tokens(shape, room, T, logits.data(), l.bias.data(), nullptr, chosen.data(), weight.data(), score.data());
    for (int t = 0; t < T; t++) {
        size_t at = size_t(t) * m.K;
        for (int k = 0; k < m.K; k++) count[chosen[at + k] + 1]++;
        if (b.routes) {
            int page = b.tables[size_t(b.seq[t]) * b.table_stride + b.pos[t] / P];
            int16_t* r = b.routes + ((size_t(page) * P + b.pos[t] % P) * moe_layers + moe_index) * m.K;
            std::memcpy(r, &chosen[at], sizeof(int16_t) * m.K);
        }
    }
    for (int e = 0; e < m.E; e++) count[e + 1] += count[e];
    std::vector<int> next(count.begin(), count.end() - 1);
    Room gathered(size_t(T) * m.K * m.D), result(size_t(T) * m.K * m.D);
    for (int i = 0; i < T * m.K; i++) {
        slot[i] = next[chosen[i]]++;
        std::memcpy(&gathered[size_t(slot[i]) * m.D], h + size_t(i / m.K) * m.D, sizeof(float) * m.D);
    }
    for (int e = 0; e < m.E; e++)
        if (count[e + 1] > count[e])
            mlp(l.expert_gate_up[e], l.expert_down[e], m.I, &gathered[size_t(count[e]) * m.D], m.D,
                count[e + 1] - count[e], &result[size_t(count[e]) * m.D]);
    if (m.shared)
        mlp(l.shared_gate_up, l.shared_down, m.I * m.shared, h, m.D, T, out);
    else
        std::memset(out, 0, sizeof(float) * T * m.D);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < m.K; k++) {
            const float* r = &result[size_t(slot[size_t(t) * m.K + k]) * m.D];
            float w = weight[size_t(t) * m.K + k];
            for (int d = 0; d < m.D; d++) out[size_t(t) * m.D + d] += w * r[d];
        }
}

uint64_t mix(uint64_t x) {  // splitmix64 finaliser
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

vf upto(const float* p, int left) {  // -inf where there is no more
    float x[VL];
    for (int i = 0; i < VL; i++) x[i] = i < left ? p[i] : -INFINITY;
    return loadv(x);
}

void sample_row(int vocab, const float* l, float temperature, uint64_t key, int position, float top_p, int* token, float* logprob) {
    const int blocks = (vocab + 15) / 16;
    std::vector<float> e(blocks * 16);
    std::vector<double> part(blocks);
    auto sums = [&] {
        double all = 0;
        for (int b = 0; b < blocks; b++) {
            double s = 0;
            for (int j = 0; j < 16; j++) s += e[b * 16 + j];
            all += part[b] = s;
        }
        return all;
    };
    float inv = temperature > 0 ? 1.0f / temperature : 1.0f;
    vf top = vf{} - INFINITY;
    for (int i = 0; i < blocks * 16; i += VL) {
        const vf x = i + VL <= vocab ? loadv(l + i) : upto(l + i, vocab - i);
        top = top > x ? top : x;
    }
    const float most = widest(top);
    float high = most * inv;
    for (int i = 0; i < blocks * 16; i += VL) {
        const vf x = (i + VL <= vocab ? loadv(l + i) : upto(l + i, vocab - i)) * inv - high;
        storev(&e[i], x > -80.0f ? exp_of(x) : vf{});
    }
    double sum = sums(), kept = sum;
    int pick = int(std::find(l, l + vocab, most) - l);
    if (temperature > 0 && top_p < 1) {
        std::vector<int> order(vocab);
        for (int i = 0; i < vocab; i++) order[i] = i;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return e[a] > e[b]; });
        kept = 0;
        for (int i : order)
            if (kept < top_p * sum) kept += e[i];
            else e[i] = 0;
        kept = sums();
    }
    if (temperature > 0) {
        double u = double(mix(key ^ mix(uint64_t(position))) >> 11) * 0x1.0p-53, target = u * kept, cum = 0;
        int b = 0;
        while (b < blocks - 1 && cum + part[b] <= target) cum += part[b++];
        for (int i = b * 16; i < vocab; i++) {
            cum += e[i];
            if (cum > target) {
                pick = i;
                break;
            }
        }
    }
    *token = pick;
    *logprob = float(double(l[pick]) * inv - high - std::log(sum));
}

}  // namespace

extern "C" {

// shape_bytes: the caller's idea of a DecoderShape; null where it is another.
Decoder* parl_decoder_new(const DecoderShape* shape, int shape_bytes) {
    if (shape_bytes != int(sizeof(DecoderShape))) return nullptr;
    auto* m = new Decoder();
    static_cast<DecoderShape&>(*m) = *shape;
    m->layer.resize(m->layers);
    m->rope_cos.resize(size_t(m->max_pos) * m->R / 2);
    m->rope_sin.resize(size_t(m->max_pos) * m->R / 2);
    for (int p = 0; p < m->max_pos; p++)
        for (int i = 0; i < m->R / 2; i++) {
            double angle = p * std::pow(double(m->rope_theta), -2.0 * i / m->R);
            m->rope_cos[size_t(p) * m->R / 2 + i] = float(std::cos(angle));
            m->rope_sin[size_t(p) * m->R / 2 + i] = float(std::sin(angle));
        }
    return m;
}

void parl_decoder_free(Decoder* m) { delete m; }
long parl_page_floats(const Decoder* m) { return m->page_layer() * m->layers; }

// name: the Hugging Face name inside a layer, or with layer -1 "embed", "norm", "head", and "rope_cos" and "rope_sin"
// [max_pos][R / 2], which take the place of the plain tables. Returns 0, or 1 if unknown.
int parl_decoder_set(Decoder* m, int layer, const char* name_c, const float* w) {
    std::string name(name_c);
    auto vec = [&](std::vector<float>& v, size_t n) { v.assign(w, w + n); return 0; };
    auto lin = [&](Linear& x, int n, int k) { x.pack(w, n, k, k, 1); return 0; };
    if (layer < 0) {
        if (name == "embed") return vec(m->embed, size_t(m->vocab) * m->D);
        if (name == "norm") return vec(m->final_norm, m->D);
        if (name == "head") return lin(m->head, m->vocab, m->D);
        if (name == "rope_cos") return vec(m->rope_cos, m->rope_cos.size());
        if (name == "rope_sin") return vec(m->rope_sin, m->rope_sin.size());
        return 1;
    }
    Layer& l = m->layer[layer];
    int shared_width = m->I * m->shared;
    if (name == "input_layernorm") return vec(l.input_norm, m->D);
    if (name == "post_attention_layernorm") return vec(l.post_norm, m->D);
    if (name == "self_attn.q_a_layernorm") return vec(l.q_norm, m->q_rank);
    if (name == "self_attn.kv_a_layernorm") return vec(l.kv_norm, m->C);
    if (name == "self_attn.q_a_proj") return lin(l.q_a, m->q_rank, m->D);
    if (name == "self_attn.q_proj") return lin(l.q_b, m->H * (m->N + m->R), m->D);
    if (name == "self_attn.q_b_proj") return lin(l.q_b, m->H * (m->N + m->R), m->q_rank);
    if (name == "self_attn.kv_a_proj_with_mqa") return lin(l.kv_a, m->C + m->R, m->D);
    if (name == "self_attn.o_proj") return lin(l.o, m->D, m->H * m->V);
    if (name == "self_attn.kv_b_proj") {  // absorbed: keys' half maps queries to the latent, values' half maps it back
        l.key_up.resize(m->H);
        l.value_up.resize(m->H);
        for (int h = 0; h < m->H; h++) {
            const float* base = w + size_t(h) * (m->N + m->V) * m->C;
            l.key_up[h].pack(base, m->C, m->N, 1, m->C);
            l.value_up[h].pack(base + size_t(m->N) * m->C, m->V, m->C, m->C, 1);
        }
        return 0;
    }
    if (name == "mlp.gate") return lin(l.gate, m->E, m->D);
    if (name == "mlp.gate.e_score_correction_bias") return vec(l.bias, m->E);
    if (name == "mlp.gate_up_proj") { fused_rows(w, w + size_t(m->dense_width) * m->D, m->dense_width, m->D, l.gate_up); return 0; }
    if (name == "mlp.down_proj") return lin(l.down, m->D, m->dense_width);
    if (name == "mlp.shared_experts.gate_up_proj") { fused_rows(w, w + size_t(shared_width) * m->D, shared_width, m->D, l.shared_gate_up); return 0; }
    if (name == "mlp.shared_experts.down_proj") return lin(l.shared_down, m->D, shared_width);
    if (name == "mlp.experts.gate_up_proj" || name == "mlp.experts.down_proj") {
        bool up = name == "mlp.experts.gate_up_proj";
        auto& list = up ? l.expert_gate_up : l.expert_down;
        int n = up ? 2 * m->I : m->D, k = up ? m->D : m->I;
        list.resize(m->E);
        for (int e = 0; e < m->E; e++) list[e].pack(w + size_t(e) * n * k, n, k, k, 1);
        return 0;
    }
    return 1;
}

// Feeds T tokens; writes logits [n_out][vocab] for the batch rows in out_rows. Returns 0, or 1 if a logit is not finite.
// features [n_features][D] take the place of the embeddings of the batch rows in feature_rows.
int parl_decoder_forward(const Decoder* mp, int T, const int* tokens, const int* pos, const int* seq, const int* tables,
                         int table_stride, float* pages, int16_t* routes, int n_out, const int* out_rows, float* logits,
                         int n_features, const int* feature_rows, const float* features) {
    const Decoder& m = *mp;
    Batch b{T, tokens, pos, seq, tables, table_stride, pages, routes};
    Room x(size_t(T) * m.D), h(size_t(T) * m.D), y(size_t(T) * m.D);
    for (int t = 0; t < T; t++) std::memcpy(&x[size_t(t) * m.D], &m.embed[size_t(tokens[t]) * m.D], sizeof(float) * m.D);
    for (int f = 0; f < n_features; f++)
        std::memcpy(&x[size_t(feature_rows[f]) * m.D], &features[size_t(f) * m.D], sizeof(float) * m.D);
    for (int i = 0; i < m.layers; i++) {
        const Layer& l = m.layer[i];
        rms_norm(x.data(), m.D, l.input_norm.data(), m.D, m.eps, T, h.data(), m.D);
        attention(m, l, i, b, h.data(), y.data());
        add(x.data(), y.data(), size_t(T) * m.D);
        rms_norm(x.data(), m.D, l.post_norm.data(), m.D, m.eps, T, h.data(), m.D);
        if (i < m.dense)
            mlp(l.gate_up, l.down, m.dense_width, h.data(), m.D, T, y.data());
        else
            experts(m, l, i - m.dense, b, h.data(), y.data());
        add(x.data(), y.data(), size_t(T) * m.D);
    }
    for (int r = 0; r < n_out; r++)
        rms_norm(&x[size_t(out_rows[r]) * m.D], m.D, m.final_norm.data(), m.D, m.eps, 1, &h[size_t(r) * m.D], m.D);
    linear(m.head, h.data(), m.D, n_out, logits, m.vocab);
    for (size_t i = 0; i < size_t(n_out) * m.vocab; i++)
        if (!std::isfinite(logits[i])) return 1;
    return 0;
}

// Inverse-CDF sampling of each row with a uniform number that is a function of (key, position) alone.
// temperature 0 = argmax (log-prob then at temperature 1). top_p < 1 leaves the likeliest tokens that together reach it;
// log-probs are those before that cut. Sums are taken in blocks of 16, so that one need not wait for the other.
void parl_sample(int rows, int vocab, const float* logits, const float* temperature, const uint64_t* key,
                 const int* position, const float* top_p, int* token, float* logprob) {
#pragma omp parallel for schedule(static) if (long(rows) * vocab > 100000)
    for (int r = 0; r < rows; r++)
        sample_row(vocab, logits + size_t(r) * vocab, temperature[r], key[r], position[r], top_p[r], token + r, logprob + r);
}
}
