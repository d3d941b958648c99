// The router's balance loss within sequences and z-loss, forward and backward (model/kernels/reference.py: router_loss_fwd).
//
// T tokens, E experts, K experts a token. Tokens of sequence -1 count nowhere. A token's part is computed alone and the
// parts are added in order, in double: the number of threads changes no bit.

#include <vector>

#include "simd.hpp"

using namespace parl;

namespace {

struct Loss {
    int T, E, K, sequences, threads;
    float balance, z;
    const float* logits;
    const int* sequence;
    std::vector<float> f;       // [sequence][E] = E / (K N) * assignments
    std::vector<int> tokens;    // N of each sequence
    int counted = 0;            // tokens of all

    Loss(const int* ints, float balance_, float z_, const float* logits_, const int16_t* ids, const int* sequence_)
        : T(ints[0]), E(ints[1]), K(ints[2]), sequences(std::max(ints[3], 1)), threads(ints[4]), balance(balance_), z(z_),
          logits(logits_), sequence(sequence_), f(size_t(sequences) * E), tokens(sequences) {
        for (int t = 0; t < T; t++) {
            if (sequence[t] < 0) continue;
            counted++;
            tokens[sequence[t]]++;
            for (int k = 0; k < K; k++) f[size_t(sequence[t]) * E + ids[long(t) * K + k]]++;
        }
        for (int s = 0; s < sequences; s++)
            for (int e = 0; e < E; e++) f[size_t(s) * E + e] *= float(E) / K / std::max(tokens[s], 1);
    }
    float per_token(int t) const { return balance / sequences / tokens[sequence[t]]; }
    float per_square() const { return z / std::max(counted, 1); }
};

struct Token {
    float total, dot;  // sums of scores, and of f times score
    float top, lse;    // largest logit, log of the sum of exponentials
};

Token look(const Loss& m, int t) {
    const float *x = m.logits + long(t) * m.E, *f = m.f.data() + size_t(m.sequence[t]) * m.E;
    vf total = {}, dot = {}, sum = {}, top = vf{} - INFINITY;
    auto logits = [&](int e, float rest) {
        if (e + VL <= m.E) return loadv(x + e);
        float out[VL];
        for (int i = 0; i < VL; i++) out[i] = e + i < m.E ? x[e + i] : rest;
        return loadv(out);
    };
    for (int e = 0; e < m.E; e += VL) {
        const vf v = logits(e, -INFINITY);
        top = top > v ? top : v;
    }
    const float most = widest(top);
    for (int e = 0; e < m.E; e += VL) {
        const vf v = logits(e, -INFINITY), y = v > -INFINITY ? sigmoid(v) : vf{};
        total += y;
        dot = fma(y, loadf(f + e, m.E - e), dot);
        sum += v > -INFINITY ? exp_of(v - most) : vf{};
    }
    return {parl::total(total) + 1e-20f, parl::total(dot), most, most + std::log(parl::total(sum))};
}

}  // namespace

extern "C" {

// ints: T, E, K, sequences, threads
float parl_router_loss(const int* ints, float balance, float z, const float* logits, const int16_t* ids, const int* sequence) {
    const Loss m(ints, balance, z, logits, ids, sequence);
    std::vector<double> part(m.T);
#pragma omp parallel for schedule(static) num_threads(m.threads)
    for (int t = 0; t < m.T; t++) {
        if (sequence[t] < 0) continue;
        const Token k = look(m, t);
        part[t] = double(m.per_token(t)) * k.dot / k.total + double(m.per_square()) * k.lse * k.lse;
    }
    double sum = 0;
    for (double p : part) sum += p;
    return float(sum);
}

void parl_router_loss_backward(const int* ints, float balance, float z, const float* logits, const int16_t* ids,
                               const int* sequence, float dloss, float* dlogits) {
    const Loss m(ints, balance, z, logits, ids, sequence);
#pragma omp parallel for schedule(static) num_threads(m.threads)
    for (int t = 0; t < m.T; t++) {
        float* out = dlogits + long(t) * m.E;
        std::memset(out, 0, sizeof(float) * m.E);
        if (sequence[t] < 0) continue;
        const Token k = look(m, t);
        const float *x = logits + long(t) * m.E, *f = m.f.data() + size_t(sequence[t]) * m.E;
        const float mean = k.dot / k.total, a = dloss * m.per_token(t) / k.total, b = 2 * dloss * m.per_square() * k.lse;
        for (int e = 0; e < m.E; e += VL) {
            const int left = m.E - e;
            const vf v = loadf(x + e, left), y = sigmoid(v);
            storef(out + e, a * (loadf(f + e, left) - mean) * y * (1.0f - y) + b * exp_of(v - k.lse), left);
        }
    }
}
}
