// SPDX-License-Identifier: Apache-2.0
// A small Llama-architecture language model in f32: embedding, blocks of attention and SwiGLU, norm, head. Readable first; its
// matrix multiply is fast enough that the cache, not the model, is what a measurement sees.
//
//   h = norm(x; a)             q, k, v = Wq h, Wk h, Wv h           q, k = rope(q), rope(k)
//   x = x + Wo attention(q, k, v)
//   h = norm(x; m)             x = x + Wdown (silu(Wgate h) * (Wup h))
//   logits = Whead norm(x; n)
//
// The cache stands behind one function object: attention(layer, q, k, v, out), which attends to the past and to the chunk itself and
// then remembers the chunk. Everything about compression happens there.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pith/core/status.hpp"
#include "pith/core/view.hpp"
#include "pith/interop/safetensors.hpp"

namespace example {

using rows_view = pith::tensor_view<float const, 3>;  // [token][head][channel]
using rows_out = pith::tensor_view<float, 3>;

struct llama_config {
  int vocab = 0, dim = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0, context = 0;
  float rope_theta = 0, norm_eps = 0;
};

// One matrix of the model, however it is stored: y[token][out] = sum_in x[token][in] w[out][in].
class weights {
 public:
  virtual ~weights() = default;
  virtual void multiply(float const* x, int tokens, float* y) const = 0;
  virtual std::int64_t bytes() const = 0;
};
using matrix = std::unique_ptr<weights const>;

// Makes a matrix of w [outputs][inputs].
using matrix_maker = matrix (*)(float const* w, int outputs, int inputs);

// f32, repacked into panels [out / lanes][in][lanes]: a row of a panel is one vector.
class plain_weights final : public weights {
 public:
  static matrix make(float const* weight, int outputs, int inputs) { return std::make_unique<plain_weights>(weight, outputs, inputs); }

  plain_weights(float const* weight, int outputs, int inputs) : outputs_(outputs), inputs_(inputs) {
    panels_.resize(static_cast<std::size_t>((outputs + lanes - 1) / lanes * inputs) * lanes);
    for (int o = 0; o < outputs; ++o)
      for (int i = 0; i < inputs; ++i) panels_[static_cast<std::size_t>((o / lanes * inputs + i) * lanes + o % lanes)] = weight[o * inputs + i];
  }

  void multiply(float const* x, int tokens, float* y) const override {
    for (int panel = 0; panel * lanes < outputs_; ++panel) {
      int token = 0;
      for (; token + 8 <= tokens; token += 8) block<8>(x + token * inputs_, panel, y + token * outputs_);
      for (; token < tokens; ++token) block<1>(x + token * inputs_, panel, y + token * outputs_);
    }
  }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(sizeof(float)) * outputs_ * inputs_; }

 private:
#if defined(__AVX512F__)
  static constexpr int lanes = 16;
#elif defined(__AVX__)
  static constexpr int lanes = 8;
#else
  static constexpr int lanes = 4;
#endif
  typedef float vector __attribute__((vector_size(4 * lanes), aligned(4)));

  // 8 tokens times one panel of outputs stay in registers while the inputs stream by.
  template <int Tokens>
  void block(float const* x, int panel, float* y) const {
    float const* w = panels_.data() + static_cast<std::ptrdiff_t>(panel) * inputs_ * lanes;
    vector sum[Tokens] = {};
    for (int i = 0; i < inputs_; ++i) {
      vector const column = *reinterpret_cast<vector const*>(w + i * lanes);
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t) sum[t] += x[t * inputs_ + i] * column;
    }
    int const filled = outputs_ - panel * lanes < lanes ? outputs_ - panel * lanes : lanes;
    for (int t = 0; t < Tokens; ++t) std::memcpy(y + t * outputs_ + panel * lanes, &sum[t], sizeof(float) * static_cast<std::size_t>(filled));
  }

  int outputs_ = 0, inputs_ = 0;
  std::vector<float> panels_;
};

struct llama_block {
  std::vector<float> attention_norm, mlp_norm;  // [dim]
  matrix q, k, v, o, gate, up, down;
};

struct llama {
  llama_config config;
  std::vector<float> embedding;  // [vocab][dim]
  std::vector<float> norm;       // [dim]
  std::vector<llama_block> blocks;
  matrix head;
  std::vector<float> cosine, sine;  // [context][head_dim / 2]

  // Bytes of all matrices, and the numbers that they stand for.
  std::int64_t matrix_bytes() const {
    std::int64_t sum = head->bytes();
    for (llama_block const& b : blocks)
      for (matrix const* m : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down}) sum += (*m)->bytes();
    return sum;
  }
  std::int64_t matrix_numbers() const {
    std::int64_t const width = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
    return config.dim * (config.vocab + config.layers * (2 * width + 2 * kv + 3ll * config.hidden));
  }
};

namespace detail {

// x / rms(x) * weight, rms over the row.
inline void normalize(float const* x, float const* weight, int dim, float eps, float* out) {
  float square = 0;
  for (int i = 0; i < dim; ++i) square += x[i] * x[i];
  float const scale = 1.0f / std::sqrt(square / static_cast<float>(dim) + eps);
  for (int i = 0; i < dim; ++i) out[i] = x[i] * scale * weight[i];
}

// Pairs (i, i + head_dim / 2) turn by the token's position times their frequency.
inline void rotate(float* row, int heads, int head_dim, float const* cosine, float const* sine) {
  int const half = head_dim / 2;
  for (int head = 0; head < heads; ++head, row += head_dim)
    for (int i = 0; i < half; ++i) {
      float const a = row[i], b = row[i + half];
      row[i] = a * cosine[i] - b * sine[i];
      row[i + half] = b * cosine[i] + a * sine[i];
    }
}

// exp, by 2^n 2^f with a polynomial for 2^f: a loop over it becomes vector code. Relative error below 3e-7.
PITH_INLINE float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float const t = x * 1.44269504f;
  float const n = (t + 12582912.0f) - 12582912.0f;  // rounds to the nearest integer
  float const f = (t - n) * 0.69314718f;
  float const p = 1.0f + f * (1.0f + f * (0.5f + f * (0.16666667f + f * (0.041666668f + f * (0.008333334f + f * 0.0013888889f)))));
  return p * pith::bits_float(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23);
}

// What the file says, or nothing.
inline bool number(pith::safetensors::file const& file, char const* key, double& value) {
  std::string const* text = file.find_metadata(key);
  if (!text) return false;
  char* end = nullptr;
  value = std::strtod(text->c_str(), &end);
  return end != text->c_str() && *end == '\0' && value > 0 && value < 1e9;
}

inline pith::status take(pith::safetensors::file const& file, std::string const& name, std::vector<std::int64_t> const& shape,
                         std::vector<float>& out) {
  pith::safetensors::tensor const* t = file.find(name);
  if (!t || t->shape != shape) return {pith::errc::shape_mismatch, t ? static_cast<std::int64_t>(t->shape.size()) : 0};
  out.resize(static_cast<std::size_t>(t->elements()));
  return pith::safetensors::decode(*t, out);
}

inline pith::status take(pith::safetensors::file const& file, std::string const& name, int outputs, int inputs, matrix_maker make, matrix& out) {
  std::vector<float> weight;
  pith::status const s = take(file, name, {outputs, inputs}, weight);
  if (s) out = make(weight.data(), outputs, inputs);
  return s;
}

}  // namespace detail

// The model in the bytes of a safetensors file; its sizes are in the file's metadata. `make` stores its matrices.
inline pith::result<llama> load_llama(std::span<std::byte const> bytes, matrix_maker make = &plain_weights::make) {
  pith::result<pith::safetensors::file> read = pith::safetensors::read(bytes);
  if (!read) return read.error();
  pith::safetensors::file const& file = read.value();

  llama m;
  llama_config& c = m.config;
  struct { char const* key; int* to; } const sizes[] = {
      {"vocab_size", &c.vocab}, {"hidden_size", &c.dim}, {"num_hidden_layers", &c.layers}, {"num_attention_heads", &c.heads},
      {"num_key_value_heads", &c.kv_heads}, {"head_dim", &c.head_dim}, {"intermediate_size", &c.hidden},
      {"max_position_embeddings", &c.context}};
  double value = 0;
  for (auto const& size : sizes) {
    if (!detail::number(file, size.key, value) || value > 1 << 20) return pith::status{pith::errc::bad_format, 8};
    *size.to = static_cast<int>(value);
  }
  if (!detail::number(file, "rope_theta", value)) return pith::status{pith::errc::bad_format, 8};
  double const theta = value;
  c.rope_theta = static_cast<float>(theta);
  if (!detail::number(file, "rms_norm_eps", value)) return pith::status{pith::errc::bad_format, 8};
  c.norm_eps = static_cast<float>(value);
  if (c.head_dim % 2 != 0 || c.heads % c.kv_heads != 0) return pith::status{pith::errc::bad_format, 8};

  pith::status s = detail::take(file, "model.embed_tokens.weight", {c.vocab, c.dim}, m.embedding);
  if (s) s = detail::take(file, "model.norm.weight", {c.dim}, m.norm);
  if (s) s = detail::take(file, "lm_head.weight", c.vocab, c.dim, make, m.head);
  for (int layer = 0; s && layer < c.layers; ++layer) {
    llama_block& b = m.blocks.emplace_back();
    std::string const at = "model.layers." + std::to_string(layer) + ".";
    s = detail::take(file, at + "input_layernorm.weight", {c.dim}, b.attention_norm);
    if (s) s = detail::take(file, at + "post_attention_layernorm.weight", {c.dim}, b.mlp_norm);
    if (s) s = detail::take(file, at + "self_attn.q_proj.weight", c.heads * c.head_dim, c.dim, make, b.q);
    if (s) s = detail::take(file, at + "self_attn.k_proj.weight", c.kv_heads * c.head_dim, c.dim, make, b.k);
    if (s) s = detail::take(file, at + "self_attn.v_proj.weight", c.kv_heads * c.head_dim, c.dim, make, b.v);
    if (s) s = detail::take(file, at + "self_attn.o_proj.weight", c.dim, c.heads * c.head_dim, make, b.o);
    if (s) s = detail::take(file, at + "mlp.gate_proj.weight", c.hidden, c.dim, make, b.gate);
    if (s) s = detail::take(file, at + "mlp.up_proj.weight", c.hidden, c.dim, make, b.up);
    if (s) s = detail::take(file, at + "mlp.down_proj.weight", c.dim, c.hidden, make, b.down);
  }
  if (!s) return s;

  for (int position = 0; position < c.context; ++position)
    for (int i = 0; i < c.head_dim / 2; ++i) {
      double const angle = position * std::pow(theta, -2.0 * i / c.head_dim);
      m.cosine.push_back(static_cast<float>(std::cos(angle)));
      m.sine.push_back(static_cast<float>(std::sin(angle)));
    }
  return m;
}

// The scratch memory of a forward pass, kept between calls.
struct llama_scratch {
  std::vector<float> x, h, q, k, v, attended, gate, up;
};

// Logits [token][vocab] of a chunk of tokens, the first of which stands at `position`.
//
// attention  pith::status (int layer, rows_view q, rows_view k, rows_view v, rows_out out)
// errors     out_of_range: past the model's context; what `attention` returns
template <class Attention>
pith::status forward(llama const& m, std::string_view chunk, int position, Attention&& attention, std::vector<float>& logits, llama_scratch& s) {
  llama_config const& c = m.config;
  int const tokens = static_cast<int>(chunk.size()), query_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  if (position < 0 || position + tokens > c.context) return {pith::errc::out_of_range, position + tokens};
  auto const size = [&](std::vector<float>& v, int width) { v.resize(static_cast<std::size_t>(tokens * width)); };
  size(s.x, c.dim), size(s.h, c.dim), size(s.q, query_width), size(s.k, kv_width), size(s.v, kv_width), size(s.attended, query_width);
  size(s.gate, c.hidden), size(s.up, c.hidden), size(logits, c.vocab);

  for (int t = 0; t < tokens; ++t) {
    int const id = static_cast<unsigned char>(chunk[static_cast<std::size_t>(t)]);
    if (id >= c.vocab) return {pith::errc::out_of_range, t};
    std::memcpy(&s.x[static_cast<std::size_t>(t * c.dim)], &m.embedding[static_cast<std::size_t>(id * c.dim)], sizeof(float) * static_cast<std::size_t>(c.dim));
  }
  auto const normalize = [&](std::vector<float> const& weight) {
    for (int t = 0; t < tokens; ++t) detail::normalize(s.x.data() + t * c.dim, weight.data(), c.dim, c.norm_eps, s.h.data() + t * c.dim);
  };
  auto const add = [&] {
    for (std::size_t i = 0; i < s.x.size(); ++i) s.x[i] += s.h[i];
  };

  for (int layer = 0; layer < c.layers; ++layer) {
    llama_block const& b = m.blocks[static_cast<std::size_t>(layer)];
    normalize(b.attention_norm);
    b.q->multiply(s.h.data(), tokens, s.q.data());
    b.k->multiply(s.h.data(), tokens, s.k.data());
    b.v->multiply(s.h.data(), tokens, s.v.data());
    for (int t = 0; t < tokens; ++t) {
      std::ptrdiff_t const at = static_cast<std::ptrdiff_t>(position + t) * (c.head_dim / 2);
      detail::rotate(s.q.data() + t * query_width, c.heads, c.head_dim, m.cosine.data() + at, m.sine.data() + at);
      detail::rotate(s.k.data() + t * kv_width, c.kv_heads, c.head_dim, m.cosine.data() + at, m.sine.data() + at);
    }
    pith::status const done = attention(layer, rows_view(s.q.data(), {tokens, c.heads, c.head_dim}), rows_view(s.k.data(), {tokens, c.kv_heads, c.head_dim}),
                                        rows_view(s.v.data(), {tokens, c.kv_heads, c.head_dim}), rows_out(s.attended.data(), {tokens, c.heads, c.head_dim}));
    if (!done) return done;
    b.o->multiply(s.attended.data(), tokens, s.h.data());
    add();

    normalize(b.mlp_norm);
    b.gate->multiply(s.h.data(), tokens, s.gate.data());
    b.up->multiply(s.h.data(), tokens, s.up.data());
    for (std::size_t i = 0; i < s.gate.size(); ++i) s.gate[i] = s.gate[i] / (1.0f + detail::fast_exp(-s.gate[i])) * s.up[i];
    b.down->multiply(s.gate.data(), tokens, s.h.data());
    add();
  }
  normalize(m.norm);
  m.head->multiply(s.h.data(), tokens, logits.data());
  return {};
}

}  // namespace example
