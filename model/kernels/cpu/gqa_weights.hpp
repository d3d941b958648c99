// What the decoder of gqa.cpp holds: its shape, weights under transformers' names, and the cache.

#pragma once

#include <string>
#include <vector>

#include "packed.hpp"
#include "paged.hpp"

namespace parl {

struct GqaShape {  // field for field _Shape of model/hf/decode/native.py
    int vocab, D, layers, H, KV, dim, width, E, K, I, max_pos, norm_topk, pages, kind;
    float eps, scale;
};

struct Batch {
    int T;
    const int *tokens, *pos, *seq, *tables;
    int table_stride;
    int16_t* routes;  // [page][P][routed layers][K]
    int page(int t) const { return tables[size_t(seq[t]) * table_stride + pos[t] / P]; }
};

struct Source {  // an array of numpy's: bfloat16 or float32
    const void* at;
    bool half;
    template <class Use>
    void visit(Use use) const {
        if (half) use(static_cast<const bf16*>(at));
        else use(static_cast<const float*>(at));
    }
};

struct Base : GqaShape {
    virtual ~Base() = default;
    virtual bool set(int layer, const std::string& name, Source w) = 0;
    virtual bool forward(const Batch& b, int n_out, const int* out_rows, float* logits) = 0;
    virtual bool cache() = 0;
};

// M: how weights lie, C: the model's numbers.
template <class M, class C>
struct Held : Base {
    using A = typename C::Number;
    struct Layer {
        std::vector<A> input_norm, post_norm, q_norm, k_norm;
        Packed<M> qkv, o, gate_up, down;
        Packed<C> gate;
        std::vector<Packed<M>> expert_gate_up, expert_down;
        int window = 0;
        int routed = -1;  // which of the layers with experts
    };
    Layout<C> layout;
    std::vector<Layer> layer;
    std::vector<A> embed, final_norm, cosines, sines;
    Packed<M> head;
    Big<word> pages_;
    int routed_layers = 0;

    Held(const GqaShape& s, const int* windows, const int* sparse) {
        static_cast<GqaShape&>(*this) = s;
        layout.dim = dim;
        layer.resize(layers);
        for (int i = 0; i < layers; i++) {
            layer[i].window = windows[i];
            if (sparse[i]) layer[i].routed = routed_layers++;
        }
    }
    bool cache() override { return pages_.assign(size_t(layers) * pages * KV * layout.size()); }
    word* cached(int index, int page, int kv) const {
        return pages_.data() + ((size_t(index) * pages + page) * KV + kv) * layout.size();
    }

    static void vec(std::vector<A>& to, Source w, size_t n) {
        to.resize(n);
        w.visit([&](auto* from) {
            for (size_t i = 0; i < n; i++) store1(&to[i], load1(from + i));
        });
    }
    template <class W>
    static bool put(Packed<W>& to, int n, int k, Source w, int rows, int first = 0) {
        if (!to.shape(n, k)) return false;
        w.visit([&](auto* from) { to.put(from, rows, [=](int i) { return first + i; }); });
        return true;
    }
    static int interleaved(int i, int second) { return i / VL * PANEL + i % VL + second * VL; }
    template <class T>
    static bool halves(Packed<M>& to, int width, int k, const T* w, int second) {
        if (!to.shape(int(align_up(width, VL)) * 2, k)) return false;
        to.put(w, width, [=](int i) { return interleaved(i, second); });
        return true;
    }
    static bool bias(Packed<M>& to, Source w, int n, int first) {
        w.visit([&](auto* from) {
            for (int i = 0; i < n; i++) to.bias[first + i] = load1(from + i);
        });
        return true;
    }

    bool set_layer(Layer& l, const std::string& name, Source w) {
        const int q = H * dim, kv = KV * dim, all = q + 2 * kv;
        if (name == "input_layernorm.weight") return vec(l.input_norm, w, D), true;
        if (name == "post_attention_layernorm.weight") return vec(l.post_norm, w, D), true;
        if (name == "self_attn.q_norm.weight") return vec(l.q_norm, w, dim), true;
        if (name == "self_attn.k_norm.weight") return vec(l.k_norm, w, dim), true;
        if (name == "self_attn.q_proj.weight") return put(l.qkv, all, D, w, q);
        if (name == "self_attn.k_proj.weight") return put(l.qkv, all, D, w, kv, q);
        if (name == "self_attn.v_proj.weight") return put(l.qkv, all, D, w, kv, q + kv);
        if (name == "self_attn.o_proj.weight") return put(l.o, D, q, w, D);
        if (name == "mlp.down_proj.weight") return put(l.down, D, width, w, D);
        if (name == "mlp.gate.weight") return put(l.gate, E, D, w, E);
        if (name == "self_attn.q_proj.bias") return l.qkv.shape(all, D) && bias(l.qkv, w, q, 0);
        if (name == "self_attn.k_proj.bias") return l.qkv.shape(all, D) && bias(l.qkv, w, kv, q);
        if (name == "self_attn.v_proj.bias") return l.qkv.shape(all, D) && bias(l.qkv, w, kv, q + kv);
        if (name == "self_attn.o_proj.bias") return l.o.shape(D, q) && bias(l.o, w, D, 0);
        if (name == "mlp.down_proj.bias") return l.down.shape(D, width) && bias(l.down, w, D, 0);
        for (int second = 0; second < 2; second++) {
            const std::string proj = second ? "mlp.up_proj" : "mlp.gate_proj";
            bool done = false;
            if (name == proj + ".weight") w.visit([&](auto* from) { done = halves(l.gate_up, width, D, from, second); });
            if (name == proj + ".bias" && l.gate_up.shape(int(align_up(width, VL)) * 2, D))
                w.visit([&](auto* from) {
                    for (int i = 0; i < width; i++) l.gate_up.bias[interleaved(i, second)] = load1(from + i);
                    done = true;
                });
            if (done) return true;
        }
        return name.rfind("mlp.experts.", 0) == 0 && set_experts(l, name.substr(12), w);
    }

    bool set_experts(Layer& l, const std::string& name, Source w) {
        bool done = name == "gate_up_proj" || name == "down_proj";
        w.visit([&](auto* from) {
            l.expert_gate_up.resize(E);
            l.expert_down.resize(E);
            for (int e = 0; done && e < E; e++) {
                auto* at = from + size_t(e) * I * D * (name == "down_proj" ? 1 : 2);
                if (name == "gate_up_proj") {
                    done = halves(l.expert_gate_up[e], I, D, at, 0) && halves(l.expert_gate_up[e], I, D, at + size_t(I) * D, 1);
                } else if ((done = l.expert_down[e].shape(D, I))) {
                    l.expert_down[e].put(at, D, [](int i) { return i; });
                }
            }
        });
        return done;
    }

    bool set(int index, const std::string& name, Source w) override {
        if (index >= 0) return set_layer(layer[index], name, w);
        const size_t rotary = size_t(max_pos) * (dim / 2);
        if (name == "embed") return vec(embed, w, size_t(vocab) * D), true;
        if (name == "norm") return vec(final_norm, w, D), true;
        if (name == "cos") return vec(cosines, w, rotary), true;
        if (name == "sin") return vec(sines, w, rotary), true;
        return name == "head" && put(head, vocab, D, w, vocab);
    }
};

}  // namespace parl
