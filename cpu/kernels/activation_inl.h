// act(g) * u for a vector of gate and up results. Included by cpu/kernels/expert_inl.h after a Simd.
//
// exp(x) = 2^n * p(r) with n = round(x / ln 2) and a polynomial of degree 6 on |r| <= ln 2 / 2: within 2 ulp
// (Cephes).
#pragma once
#include <cmath>

#include "src/types.h"

namespace moerun::cpu {
namespace {

inline Simd::F exp_of(Simd::F x) {
  using S = Simd;
  x = S::min(S::set1(88.37f), S::max(S::set1(-87.33f), x));  // a NaN is the second operand, and stays
  const S::F n = S::round(S::mul(x, S::set1(1.44269504f)));
  S::F r = S::fmadd(n, S::set1(-0.693359375f), x);
  r = S::fmadd(n, S::set1(2.12194440e-4f), r);
  S::F p = S::set1(1.9875691500e-4f);
  p = S::fmadd(p, r, S::set1(1.3981999507e-3f));
  p = S::fmadd(p, r, S::set1(8.3334519073e-3f));
  p = S::fmadd(p, r, S::set1(4.1665795894e-2f));
  p = S::fmadd(p, r, S::set1(1.6666665459e-1f));
  p = S::fmadd(p, r, S::set1(5.0000001201e-1f));
  p = S::fmadd(S::mul(r, r), p, S::add(r, S::set1(1.0f)));
  return S::mul(p, S::exp2_integral(n));
}

inline Simd::F sigmoid(Simd::F x) {
  using S = Simd;
  return S::div(S::set1(1.0f), S::add(S::set1(1.0f), exp_of(S::sub(S::zero(), x))));
}

// 0.5 x (1 + erf(x / sqrt 2)); rare in experts, so the C library's erf lane by lane.
inline Simd::F gelu_erf(Simd::F x) {
  float lane[Simd::lanes];
  Simd::store(lane, x);
  for (float& v : lane) v = 0.5f * v * (1.0f + erff(v * 0.70710678f));
  return Simd::load(lane);
}

// 0.5 x (1 + tanh(z)) = x * sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)
inline Simd::F gelu_tanh(Simd::F x) {
  using S = Simd;
  const S::F cubic = S::fmadd(S::mul(S::mul(x, x), x), S::set1(0.044715f), x);
  return S::mul(x, sigmoid(S::mul(cubic, S::set1(2.0f * 0.79788456f))));
}

inline Simd::F gated(const ActivationSpec& a, Simd::F g, Simd::F u) {
  using S = Simd;
  switch (a.kind) {
    case Activation::silu:
      return S::mul(S::mul(g, sigmoid(g)), u);
    case Activation::gelu:
      return S::mul(gelu_erf(g), u);
    case Activation::gelu_tanh:
      return S::mul(gelu_tanh(g), u);
    case Activation::relu2: {
      const S::F positive = S::max(S::zero(), g);
      return S::mul(S::mul(positive, positive), u);
    }
    case Activation::swiglu_oai: {
      const S::F limit = S::set1(a.limit), low = S::set1(-a.limit);
      g = S::min(limit, g);
      u = S::min(limit, S::max(low, u));
      return S::mul(S::mul(g, sigmoid(S::mul(S::set1(a.alpha), g))), S::add(u, S::set1(1.0f)));
    }
  }
  return S::zero();
}

}  // namespace
}  // namespace moerun::cpu
