// y = W x from words: 32 bits that hold S numbers which follow each other along the summed axis. A lane of a vector is an
// output; one word of an input row, in every lane, meets a vector of W's words, one for each of VL outputs.
//
// An output element is one chain of steps over the words, rising: its bits depend on its own input row and row of W alone,
// whatever else is computed with it and by however many threads.

#pragma once

#include <sys/mman.h>

#include <vector>

#include "simd.hpp"

namespace parl {

typedef uint32_t word;

struct Float {  // S = 1: a float
    using Number = float;
    static constexpr int S = 1;
    static vf step(vf a, iv x, iv w) { return fma(vf(x), vf(w), a); }
};

struct Pair {  // S = 2: bfloat16
    using Number = bf16;
    static constexpr int S = 2;
    static vf step(vf a, iv x, iv w) {
#if defined(__AVX512BF16__)
        return vf(_mm512_dpbf16_ps(__m512(a), __m512bh(x), __m512bh(w)));
#else
        const iv second = iv{} + int32_t(0xffff0000);
        a = fma(vf(x << 16), vf(w << 16), a);
        return fma(vf(x & second), vf(w & second), a);
#endif
    }
};

#if defined(__AVX512F__)
constexpr int ROWS = 14;  // of a tile: 28 of 32 registers accumulate
#else
constexpr int ROWS = 4;  // 8 of 16; bfloat16 takes some for itself
#endif
constexpr int PANEL = 2 * VL;  // outputs of a panel

inline long align_up(long n, long to) { return (n + to - 1) / to * to; }

// Vectors of numbers. What is stored as bfloat16 is rounded to nearest even; kept() is that rounding alone.
inline vf load(const float* p) { return loadv(p); }
inline vf load(const bf16* p) {
#if defined(__AVX512F__)
    return vf(iv(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))) << 16);
#else
    return load8(p);
#endif
}
template <class A>
inline vf load(const A* p, int left) {
    return left >= VL ? load(p) : loadf(p, left);
}
inline void store(float* p, vf v, int left) { storef(p, v, left); }
inline void store(bf16* p, vf v, int left) {
#if defined(__AVX512BF16__)
    const __m256i low = __m256i(_mm512_cvtneps_pbh(__m512(v)));
    if (left >= VL) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low);
    std::memcpy(p, &low, 2 * left);
#else
    storef(p, v, left);
#endif
}
inline vf kept(float, vf x) { return x; }
inline vf kept(bf16, vf x) {
#if defined(__AVX512BF16__)
    return vf(iv(_mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(__m512(x))))) << 16);
#else
    bf16 low[VL];
    store(low, x, VL);
    return load(low);
#endif
}

// Zeros in pages of 2 MB where the system has them: weights and caches are read from end to end.
template <class T>
class Big {
    T* data_ = nullptr;
    size_t bytes_ = 0;

  public:
    Big() = default;
    Big(const Big&) = delete;
    Big(Big&& o) : data_(o.data_), bytes_(o.bytes_) { o.data_ = nullptr; }
    ~Big() { clear(); }
    void clear() {
        if (data_) munmap(data_, bytes_);
        data_ = nullptr;
    }
    bool assign(size_t n) {
        clear();
        bytes_ = std::max<size_t>(n, 1) * sizeof(T);
        void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return false;
        madvise(at, bytes_, MADV_HUGEPAGE);
        data_ = static_cast<T*>(at);
        return true;
    }
    T* data() const { return data_; }
    size_t bytes() const { return bytes_; }
};

// Room that grows and is never cleared.
template <class T>
class Room {
    std::vector<T> v;

  public:
    T* at_least(size_t n) {
        if (v.size() < n) v.resize(n + n / 4);
        return v.data();
    }
};

inline iv spread(word x) { return iv{} + int32_t(x); }
inline iv held(iv v) {
#if defined(__AVX__)
    asm("" : "+x"(v));
#endif
    return v;
}
inline iv loadw(const word* p) { return *reinterpret_cast<const iv*>(p); }

// A tile x [words][R] of R input rows times two vectors of outputs, whose words lie `stride` apart at w0 and w1: sums
// [R][ldo], the second vector's behind the first's. Of what lies at `ahead`, which is wanted next, `fetch` lines of a panel
// are called.
template <class M, int R>
__attribute__((noinline)) void tile(const word* x, const word* w0, const word* w1, long stride, int words,
                                    float* out, long ldo, const word* ahead, int fetch) {
    vf acc[R][2] = {};
    auto step = [&]() __attribute__((always_inline)) {
        const iv a = held(loadw(w0)), b = held(loadw(w1));
#pragma GCC unroll 14
        for (int r = 0; r < R; r++) {
            const iv v = held(spread(x[r]));
            acc[r][0] = M::step(acc[r][0], v, a);
            acc[r][1] = M::step(acc[r][1], v, b);
        }
        w0 += stride, w1 += stride, x += R;
    };
    int u = 0;
    for (; u < fetch; u++, ahead += PANEL) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + 16, 0, 2);
        step();
    }
    for (; u < words; u++) step();
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 2; j++) storev(out + r * ldo + j * VL, acc[r][j]);
}

template <class M, int R = ROWS>
inline void tile_rows(int rows, const word* x, const word* w0, const word* w1, long stride, int words,
                      float* out, long ldo, const word* ahead, int fetch) {
    if constexpr (R > 1)
        if (rows < R) return tile_rows<M, R - 1>(rows, x, w0, w1, stride, words, out, ldo, ahead, fetch);
    tile<M, R>(x, w0, w1, stride, words, out, ldo, ahead, fetch);
}

// Column r of the tile [words][rows] becomes row(r), for all of them.
template <class RowOf>
void turn(RowOf row, int rows, int words, word* tile) {
    int u = 0;
    if (rows >= 8)
        for (; u + 8 <= words; u += 8)
            for (int r = 0;; r = std::min(r + 8, rows - 8)) {
                v8 block[8];
                for (int i = 0; i < 8; i++) block[i] = load8(reinterpret_cast<const float*>(row(r + i) + u));
                transpose8(block);
                for (int i = 0; i < 8; i++) store8(reinterpret_cast<float*>(tile + long(u + i) * rows + r), block[i]);
                if (r + 8 == rows) break;
            }
    for (; u < words; u++)
        for (int r = 0; r < rows; r++) tile[long(u) * rows + r] = row(r)[u];
}

}  // namespace parl
