// Packed attention on a processor with AVX512-BF16 or AMX: the layout of `attention.py`, forward and backward.
//
// A task is one block of a row and one key-value head. Its queries are taken in tiles of 32 positions, for all
// heads that share the keys, and its keys in chunks of 64, so that scores stay in the first-level cache; chunks
// above the diagonal are skipped. As in FlashAttention (Dao et al. 2022) the backward pass recomputes the
// attention weights from the saved log-sum-exps. Products are torch's own small matrix products (`brgemm`): the
// second factor is "packed", each two of its rows interleaved.

#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = at::BFloat16;
using at::native::cpublas::brgemm;

constexpr int64_t POSITIONS = 32, KEYS = 64, LANES = 16;

struct Block {
  int64_t start, end, prefix_len;
};

struct Shape {
  int64_t heads, kv_heads, dim, num_tokens;
  float scale;

  int64_t groups() const { return heads / kv_heads; }
  int64_t rows() const { return groups() * POSITIONS; }  // of a tile of queries
};

__m512 load(const bf16* from) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16));
}

void store(bf16* to, __m512 numbers) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(numbers));
}

// To a relative error of 1e-6: 2^n times a Taylor polynomial of the rest.
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, n);
}

__mmask16 first(int64_t count) {
  return count >= LANES ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// Interleave each two of `num_rows` rows of `width`: `[num_rows / 2, width, 2]`.
void pack(const bf16* rows, int64_t num_rows, int64_t width, bf16* packed) {
  for (int64_t row = 0; row < num_rows; row += 2)
    for (int64_t column = 0; column < width; column += LANES) {
      const bf16* from = rows + row * width + column;
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      const __m512i odd =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + width)));
      _mm512_storeu_si512(packed + row * width + 2 * column, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

// The same of the transposed rows: `[width / 2, num_rows, 2]`, so pairs of numbers keep together.
void pack_transposed(const bf16* rows, int64_t num_rows, int64_t width, bf16* packed) {
  const auto* from = reinterpret_cast<const uint32_t*>(rows);
  auto* to = reinterpret_cast<uint32_t*>(packed);
  const __m512i steps = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(static_cast<int>(width / 2)));
  for (int64_t pair = 0; pair < width / 2; ++pair)
    for (int64_t row = 0; row < num_rows; row += LANES)
      _mm512_storeu_si512(
          to + pair * num_rows + row, _mm512_i32gather_epi32(steps, from + row * (width / 2) + pair, 4));
}

// Chunks of a block's keys or values, the prefix's first, zeros after the last: `[num_keys, dim]`.
void gather_keys(const bf16* all, const Shape& shape, const Block& block, int64_t head, std::vector<bf16>& keys) {
  const int64_t dim = shape.dim, stride = shape.kv_heads * dim;
  const int64_t num_keys = block.prefix_len + block.end - block.start;
  keys.assign((num_keys + KEYS - 1) / KEYS * KEYS * dim, bf16(0));
  for (int64_t key = 0; key < num_keys; ++key) {
    const int64_t token = key < block.prefix_len ? key : block.start + key - block.prefix_len;
    std::memcpy(keys.data() + key * dim, all + token * stride + head * dim, dim * sizeof(bf16));
  }
}

// A tile of queries (or of their gradients), zeros after the block's last: `[groups * POSITIONS, dim]`.
void gather_queries(
    const bf16* all, const Shape& shape, int64_t position, int64_t count, int64_t kv_head, bf16* tile) {
  const int64_t dim = shape.dim;
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const int64_t head = kv_head * shape.groups() + row / POSITIONS, at = row % POSITIONS;
    if (at < count)
      std::memcpy(tile + row * dim, all + ((position + at) * shape.heads + head) * dim, dim * sizeof(bf16));
    else
      std::memset(static_cast<void*>(tile + row * dim), 0, dim * sizeof(bf16));
  }
}

void multiply(
    int64_t rows, int64_t columns, int64_t inner, const bf16* left, const bf16* packed_right, float* out, bool add) {
  brgemm(rows, columns, inner, inner, columns, columns, add, left, packed_right, out);
}

void attend_block(
    const bf16* query, const bf16* key, const bf16* value, bf16* out, float* log_sums, const Shape& shape,
    const Block& block, int64_t kv_head) {
  const int64_t dim = shape.dim, rows = shape.rows();
  thread_local std::vector<bf16> keys, values, packed_keys, packed_values, tile, weights;
  thread_local std::vector<float> scores, mixed, sums;
  gather_keys(key, shape, block, kv_head, keys);
  gather_keys(value, shape, block, kv_head, values);
  const int64_t num_chunks = keys.size() / (KEYS * dim);
  packed_keys.resize(keys.size());
  packed_values.resize(keys.size());
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t at = chunk * KEYS * dim;
    pack_transposed(keys.data() + at, KEYS, dim, packed_keys.data() + at);
    pack(values.data() + at, KEYS, dim, packed_values.data() + at);
  }
  tile.resize(rows * dim);
  scores.resize(num_chunks * rows * KEYS);
  weights.resize(num_chunks * rows * KEYS);
  mixed.resize(rows * dim);
  sums.resize(rows);
  for (int64_t position = block.start; position < block.end; position += POSITIONS) {
    const int64_t count = std::min(POSITIONS, block.end - position);
    const int64_t before = block.prefix_len + position - block.start;  // keys that the first query sees, but one
    const int64_t chunks = (before + count + KEYS - 1) / KEYS;
    gather_queries(query, shape, position, count, kv_head, tile.data());
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      multiply(
          rows, KEYS, dim, tile.data(), packed_keys.data() + chunk * KEYS * dim,
          scores.data() + chunk * rows * KEYS, false);
    for (int64_t row = 0; row < rows; ++row) {
      // Rows beyond the block's last see what the last sees: further keys may have no scores.
      const int64_t visible = before + std::min(row % POSITIONS + 1, count);
      __m512 highest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
      for (int64_t start = 0; start < visible; start += LANES) {
        const float* from = scores.data() + (start / KEYS * rows + row) * KEYS + start % KEYS;
        highest = _mm512_mask_max_ps(highest, first(visible - start), highest, _mm512_loadu_ps(from));
      }
      const float top = shape.scale * _mm512_reduce_max_ps(highest);
      for (int64_t start = 0; start < chunks * KEYS; start += LANES) {
        const int64_t at = (start / KEYS * rows + row) * KEYS + start % KEYS;
        const __m512 shifted = _mm512_fmsub_ps(
            _mm512_loadu_ps(scores.data() + at), _mm512_set1_ps(shape.scale), _mm512_set1_ps(top));
        const __m512 weight = _mm512_maskz_mov_ps(first(visible - start), exponential(shifted));
        sum = _mm512_add_ps(sum, weight);
        store(weights.data() + at, weight);
      }
      sums[row] = _mm512_reduce_add_ps(sum);
      const int64_t head = kv_head * shape.groups() + row / POSITIONS;
      if (row % POSITIONS < count)
        log_sums[head * shape.num_tokens + position + row % POSITIONS] = top + std::log(sums[row]);
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      multiply(
          rows, dim, KEYS, weights.data() + chunk * rows * KEYS, packed_values.data() + chunk * KEYS * dim,
          mixed.data(), chunk > 0);
    for (int64_t row = 0; row < rows; ++row) {
      if (row % POSITIONS >= count) continue;
      const int64_t head = kv_head * shape.groups() + row / POSITIONS;
      bf16* to = out + ((position + row % POSITIONS) * shape.heads + head) * dim;
      const __m512 factor = _mm512_set1_ps(1.0f / sums[row]);
      for (int64_t column = 0; column < dim; column += LANES)
        store(to + column, _mm512_mul_ps(_mm512_loadu_ps(mixed.data() + row * dim + column), factor));
    }
  }
}

// Adds nothing to what other blocks write: gradients of the prefix's keys and values go to `prefix_grad`.
void attend_block_backward(
    const bf16* query, const bf16* key, const bf16* value, const bf16* out, const bf16* grad,
    const float* log_sums, bf16* grad_query, bf16* grad_key, bf16* grad_value, float* prefix_grad,
    const Shape& shape, const Block& block, int64_t kv_head) {
  const int64_t dim = shape.dim, rows = shape.rows(), size = rows * dim;
  thread_local std::vector<bf16> keys, values, transposed_keys, queries, grads, packed;
  thread_local std::vector<float> sum_key, sum_value, scores, grad_weights, grad_tile, log_sum, shift;
  thread_local std::vector<bf16> weights, grad_scores, packed_grad_scores;
  gather_keys(key, shape, block, kv_head, keys);
  gather_keys(value, shape, block, kv_head, values);
  const int64_t num_chunks = keys.size() / (KEYS * dim);
  transposed_keys.resize(keys.size());
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
    for (int64_t at = 0; at < KEYS; ++at)
      for (int64_t column = 0; column < dim; ++column)
        transposed_keys[(chunk * dim + column) * KEYS + at] = keys[(chunk * KEYS + at) * dim + column];
  sum_key.assign(keys.size(), 0.0f);
  sum_value.assign(keys.size(), 0.0f);
  queries.resize(size);
  grads.resize(size);
  packed.resize(4 * size);
  bf16 *packed_queries = packed.data(), *packed_grads = packed_queries + size;
  bf16 *packed_queries_t = packed_grads + size, *packed_grads_t = packed_queries_t + size;
  scores.resize(KEYS * rows);
  grad_weights.resize(KEYS * rows);
  weights.resize(num_chunks * KEYS * rows);
  grad_scores.resize(num_chunks * KEYS * rows);
  packed_grad_scores.resize(num_chunks * KEYS * rows);
  grad_tile.resize(size);
  log_sum.resize(rows);
  shift.resize(rows);
  for (int64_t position = block.start; position < block.end; position += POSITIONS) {
    const int64_t count = std::min(POSITIONS, block.end - position);
    const int64_t before = block.prefix_len + position - block.start;
    const int64_t chunks = (before + count + KEYS - 1) / KEYS;
    gather_queries(query, shape, position, count, kv_head, queries.data());
    gather_queries(grad, shape, position, count, kv_head, grads.data());
    pack(queries.data(), rows, dim, packed_queries);
    pack(grads.data(), rows, dim, packed_grads);
    pack_transposed(queries.data(), rows, dim, packed_queries_t);
    pack_transposed(grads.data(), rows, dim, packed_grads_t);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t head = kv_head * shape.groups() + row / POSITIONS, at = position + row % POSITIONS;
      log_sum[row] = shift[row] = 0.0f;
      if (row % POSITIONS >= count) continue;
      log_sum[row] = log_sums[head * shape.num_tokens + at];
      __m512 sum = _mm512_setzero_ps();
      for (int64_t column = 0; column < dim; column += LANES)
        sum = _mm512_fmadd_ps(
            load(out + (at * shape.heads + head) * dim + column), load(grads.data() + row * dim + column), sum);
      shift[row] = _mm512_reduce_add_ps(sum);
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      // Transposed, keys by queries, so that only small factors need packing.
      multiply(KEYS, rows, dim, keys.data() + chunk * KEYS * dim, packed_queries_t, scores.data(), false);
      multiply(KEYS, rows, dim, values.data() + chunk * KEYS * dim, packed_grads_t, grad_weights.data(), false);
      for (int64_t at = 0; at < KEYS; ++at) {
        // A query sees the keys up to its own position; rows beyond the block's last have no gradient.
        const int64_t hidden = std::max<int64_t>(0, chunk * KEYS + at - before);
        const uint32_t sees = (hidden >= POSITIONS ? 0u : 0xffffffffu << hidden) &
            static_cast<uint32_t>((uint64_t(1) << count) - 1);
        for (int64_t row = 0; row < rows; row += LANES) {
          const __mmask16 mask = static_cast<__mmask16>(sees >> row % POSITIONS);
          const int64_t from = at * rows + row, to = chunk * KEYS * rows + from;
          const __m512 exponent = _mm512_fmsub_ps(
              _mm512_loadu_ps(scores.data() + from), _mm512_set1_ps(shape.scale),
              _mm512_loadu_ps(log_sum.data() + row));
          const __m512 weight = _mm512_maskz_mov_ps(mask, exponential(exponent));
          const __m512 excess = _mm512_sub_ps(
              _mm512_loadu_ps(grad_weights.data() + from), _mm512_loadu_ps(shift.data() + row));
          store(weights.data() + to, weight);
          store(
              grad_scores.data() + to,
              _mm512_mul_ps(_mm512_mul_ps(weight, excess), _mm512_set1_ps(shape.scale)));
        }
      }
      pack(grad_scores.data() + chunk * KEYS * rows, KEYS, rows, packed_grad_scores.data() + chunk * KEYS * rows);
    }
    // One shape of product after another: changing the shape takes as long as a product.
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t from = chunk * KEYS * rows, to = chunk * KEYS * dim;
      multiply(KEYS, dim, rows, weights.data() + from, packed_grads, sum_value.data() + to, true);
      multiply(KEYS, dim, rows, grad_scores.data() + from, packed_queries, sum_key.data() + to, true);
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      multiply(
          dim, rows, KEYS, transposed_keys.data() + chunk * KEYS * dim,
          packed_grad_scores.data() + chunk * KEYS * rows, grad_tile.data(), chunk > 0);
    for (int64_t row = 0; row < rows; ++row) {
      if (row % POSITIONS >= count) continue;
      const int64_t head = kv_head * shape.groups() + row / POSITIONS;
      bf16* to = grad_query + ((position + row % POSITIONS) * shape.heads + head) * dim;
      for (int64_t column = 0; column < dim; ++column) to[column] = bf16(grad_tile[column * rows + row]);
    }
  }
  for (int64_t at = 0; at < block.prefix_len + block.end - block.start; ++at) {
    const float *from_key = sum_key.data() + at * dim, *from_value = sum_value.data() + at * dim;
    if (at < block.prefix_len) {
      std::memcpy(prefix_grad + 2 * at * dim, from_key, dim * sizeof(float));
      std::memcpy(prefix_grad + (2 * at + 1) * dim, from_value, dim * sizeof(float));
      continue;
    }
    const int64_t to = ((block.start + at - block.prefix_len) * shape.kv_heads + kv_head) * dim;
    for (int64_t column = 0; column < dim; column += LANES) {
      store(grad_key + to + column, _mm512_loadu_ps(from_key + column));
      store(grad_value + to + column, _mm512_loadu_ps(from_value + column));
    }
  }
}

}  // namespace

// `[num_tokens, heads, dim]` queries and outputs, `[num_tokens, kv_heads, dim]` keys and values,
// `[heads, num_tokens]` log-sum-exps.
extern "C" void attend(
    const bf16* query, const bf16* key, const bf16* value, bf16* out, float* log_sums, const Block* blocks,
    int64_t num_blocks, const Shape* shape) {
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_blocks * shape->kv_heads; ++task)
      attend_block(
          query, key, value, out, log_sums, *shape, blocks[task / shape->kv_heads], task % shape->kv_heads);
    at::native::cpublas::brgemm_release();
  }
}

// `prefix_grads` is memory for `[num_blocks, kv_heads, prefix_len, 2, dim]`, summed in the order of the blocks, so
// that results do not depend on the threads.
extern "C" void attend_backward(
    const bf16* query, const bf16* key, const bf16* value, const bf16* out, const bf16* grad,
    const float* log_sums, bf16* grad_query, bf16* grad_key, bf16* grad_value, float* prefix_grads,
    const Block* blocks, int64_t num_blocks, int64_t prefix_len, const Shape* shape) {
  const int64_t size = 2 * prefix_len * shape->dim;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_blocks * shape->kv_heads; ++task)
      attend_block_backward(
          query, key, value, out, grad, log_sums, grad_query, grad_key, grad_value, prefix_grads + task * size,
          *shape, blocks[task / shape->kv_heads], task % shape->kv_heads);
    at::native::cpublas::brgemm_release();
#pragma omp for
    for (int64_t at = 0; at < shape->kv_heads * prefix_len; ++at) {
      const int64_t head = at / prefix_len, token = at % prefix_len;
      bf16* to[2] = {grad_key, grad_value};
      for (int64_t which = 0; which < 2; ++which)
        for (int64_t column = 0; column < shape->dim; ++column) {
          bf16* own = to[which] + (token * shape->kv_heads + head) * shape->dim + column;
          float sum = *own;
          for (int64_t block = 0; block < num_blocks; ++block)
            if (blocks[block].prefix_len)
              sum += prefix_grads[((block * shape->kv_heads + head) * prefix_len + token) * 2 * shape->dim +
                                  which * shape->dim + column];
          *own = bf16(sum);
        }
    }
  }
}
