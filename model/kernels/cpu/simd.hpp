// Vectors of floats through the compiler's own vector types: one source for AVX2, AVX-512 and any other processor.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace parl {

#if defined(__AVX512F__)
constexpr int VL = 16;  // floats in the widest vector
#else
constexpr int VL = 8;
#endif
typedef float vf __attribute__((vector_size(VL * 4), aligned(4)));
typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t iv __attribute__((vector_size(VL * 4), aligned(4)));
typedef int32_t i8v __attribute__((vector_size(32), aligned(4)));
typedef uint32_t u8v __attribute__((vector_size(32), aligned(4)));
typedef uint16_t h8v __attribute__((vector_size(16), aligned(2)));

struct bf16 {
    uint16_t bits;
};

inline vf loadv(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void storev(float* p, vf v) { *reinterpret_cast<vf*>(p) = v; }

// a b + c with one rounding. By name: compilers tuned for AMD take a lone chain of them apart, which changes its bits.
inline v8 fma(v8 a, v8 b, v8 c) {
#if defined(__FMA__)
    return v8(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#else
    return a * b + c;
#endif
}
#if defined(__AVX512F__)
inline v16 fma(v16 a, v16 b, v16 c) { return v16(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
#endif

// v in a register: compilers load it again for each use, and loads are what there is least of.
inline vf held(vf v) {
#if defined(__AVX__)
    asm("" : "+x"(v));
#endif
    return v;
}

inline v8 load8(const float* p) { return *reinterpret_cast<const v8*>(p); }
inline v8 load8(const bf16* p) {
#if defined(__AVX2__)  // one instruction, of which compilers make four
    u8v wide = u8v(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) << 16;
#else
    u8v wide = __builtin_convertvector(*reinterpret_cast<const h8v*>(p), u8v) << 16;
#endif
    v8 out;
    std::memcpy(&out, &wide, 32);
    return out;
}
inline void store8(float* p, v8 v) { *reinterpret_cast<v8*>(p) = v; }
inline void store8(bf16* p, v8 v) {  // to nearest, ties to even; a NaN stays one
    u8v bits;
    std::memcpy(&bits, &v, 32);
    u8v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
    *reinterpret_cast<h8v*>(p) = __builtin_convertvector(rounded, h8v);
}
inline float load1(const float* p) { return *p; }
inline float load1(const bf16* p) {
    uint32_t wide = uint32_t(p->bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}
inline void store1(float* p, float x) { *p = x; }
inline void store1(bf16* p, float x) {
    bf16 out[8];
    store8(out, v8{} + x);
    *p = out[0];
}

// A vector of floats, or its first elements and zeros.
template <class T>
inline vf loadf(const T* p) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(load8(p), load8(p + 8), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    return load8(p);
#endif
}
template <class T>
inline vf loadf(const T* p, int left) {
    if (left >= VL) return loadf(p);
    float x[VL] = {};
    for (int i = 0; i < left; i++) x[i] = load1(p + i);
    return loadv(x);
}
template <class T>
inline void storef(T* p, vf v, int left) {
    if (left >= VL && sizeof(T) == 4) return storev(reinterpret_cast<float*>(p), v);
    float x[VL];
    storev(x, v);
    if (left >= VL)
        for (int i = 0; i < VL; i += 8) store8(p + i, load8(x + i));
    else
        for (int i = 0; i < left; i++) store1(p + i, x[i]);
}

inline v8 part8(const float* p, int left) {
    float x[8] = {};
    for (int i = 0; i < left; i++) x[i] = p[i];
    return load8(x);
}

template <class T>
inline void widen(const T* from, long n, float* to) {
    long i = 0;
    for (; i + 8 <= n; i += 8) store8(to + i, load8(from + i));
    for (; i < n; i++) to[i] = load1(from + i);
}

inline float high(v8 v) {
    v4 a = __builtin_shufflevector(v, v, 0, 1, 2, 3), b = __builtin_shufflevector(v, v, 4, 5, 6, 7);
    a = a > b ? a : b;
    b = __builtin_shufflevector(a, a, 2, 3, 0, 1);
    a = a > b ? a : b;
    b = __builtin_shufflevector(a, a, 1, 0, 3, 2);
    a = a > b ? a : b;
    return a[0];
}

// Eight rows of eight turned into columns.
inline void transpose8(v8* r) {
    v8 p[8], q[8];
    for (int i = 0; i < 8; i += 2) {  // neighbours' elements side by side, in each half
        p[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        p[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            q[i + 2 * j] = __builtin_shufflevector(p[i + j], p[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
            q[i + 2 * j + 1] = __builtin_shufflevector(p[i + j], p[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = __builtin_shufflevector(q[i], q[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = __builtin_shufflevector(q[i], q[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// Sums of all lanes: of a vector, and of four at once, each in the same order.
inline v8 folded(v8 v) { return v; }
inline v8 folded(v16 v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline v4 totals(vf a, vf b, vf c, vf d) {
    const v8 p = folded(a), q = folded(b), r = folded(c), s = folded(d);
    auto pairs = [](v8 x, v8 y) {  // neighbours, and x beside y
        return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) + __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
    };
    const v8 all = pairs(pairs(p, q), pairs(r, s));
    return __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
}
inline float total(vf a) { return totals(a, a, a, a)[0]; }
inline float widest(vf a) {
#if defined(__AVX512F__)
    v8 low = __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7), up = __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15);
    return high(low > up ? low : up);
#else
    return high(a);
#endif
}

// exp by range reduction and a degree-5 polynomial (Cephes coefficients), relative error below 2e-7. Fused by name, so that
// it has the same bits wherever it is inlined.
template <class V>
inline V exp_of(V x) {
    using I = decltype(x < x);
    const V low = V{} - 87.0f, up = V{} + 88.0f, half = V{} + 0.5f;
    x = x > low ? x : (x == x ? low : x);  // a NaN stays one
    x = x < up ? x : (x == x ? up : x);
    I k = __builtin_convertvector(fma(x, V{} + 1.44269504f, x < 0.0f ? -half : half), I);
    V kf = __builtin_convertvector(k, V);
    V r = fma(kf, V{} + 2.12194440e-4f, fma(kf, V{} - 0.693359375f, x));
    V p = V{} + 1.9875691500e-4f;
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = fma(p, r, V{} + c);
    p = fma(p * r, r, r) + 1.0f;
    I bits = (k + 127) << 23;
    V scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}
template <class V>
inline V sigmoid(V x) {
    return 1.0f / (1.0f + exp_of(-x));
}

}  // namespace parl
