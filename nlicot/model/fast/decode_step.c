/* The parts of a decoding step between its matrix products; compiled by decode_step.py for a model's shape:
   HEADS, KV_HEADS and HEAD_SIZE (a multiple of 2 * LANES), and BF16 for bfloat16 instead of float32. Sums are in float32. Results are
   rounded where transformers' Llama rounds them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef BF16
typedef uint16_t number;
static inline float load(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline number store(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float number;
static inline float load(number x) { return x; }
static inline number store(float value) { return value; }
#endif

#define GROUPS (HEADS / KV_HEADS)
#define BLOCK 128 /* keys between two rescalings of the sums; a multiple of LANES */
#define AHEAD 32 /* keys and values to fetch before they are used: rows are too short for the processor to guess */
#define LOWEST -1e30f

typedef float lanes __attribute__((vector_size(LANES * 4)));
#define PAIRS (HEAD_SIZE / (2 * LANES))

/* Read 2 * LANES numbers. Those of bfloat16 are the halves of LANES words: two shifts are all it takes, and the
   numbers at odd places come second. AT is the place of number i of the first (odd = 0) or second vector. */
#ifdef BF16
#define AT(i, odd) (2 * (i) + (odd))
static inline void load_pair(const number *x, lanes pair[2]) {
    typedef uint32_t words __attribute__((vector_size(LANES * 4)));
    words read;
    memcpy(&read, x, sizeof read);
    pair[0] = (lanes)(read << 16);
    pair[1] = (lanes)(read & 0xffff0000);
}
#else
#define AT(i, odd) ((i) + (odd) * LANES)
static inline void load_pair(const number *x, lanes pair[2]) { memcpy(pair, x, 2 * sizeof *pair); }
#endif

/* hidden[rows, size] += delta, if there is one; out = RMSNorm(hidden). */
void add_norm(int threads, long rows, long size, number *hidden, const number *delta, const number *weight,
              float epsilon, number *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        number *x = hidden + row * size, *y = out + row * size;
        if (delta)
            for (long i = 0; i < size; i++)
                x[i] = store(load(x[i]) + load(delta[row * size + i]));
        float squares = 0;
        for (long i = 0; i < size; i++)
            squares += load(x[i]) * load(x[i]);
        float scale = 1 / sqrtf(squares / size + epsilon);
        for (long i = 0; i < size; i++)
            y[i] = store(load(store(load(x[i]) * scale)) * load(weight[i]));
    }
}

/* out[rows, size] = silu(first half) * second half of gate_up[rows, 2 * size]. */
void gate(int threads, long rows, long size, const number *gate_up, number *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const number *x = gate_up + row * 2 * size;
        for (long i = 0; i < size; i++) {
            float value = load(x[i]);
            out[row * size + i] = store(load(store(value / (1 + expf(-value)))) * load(x[size + i]));
        }
    }
}

/* out[rows, HEADS + KV_HEADS, HEAD_SIZE] = the queries and keys in qkv, rotated by the angles of cosines and
   sines [rows, HEAD_SIZE]. */
void rotate(int threads, long rows, const number *qkv, const number *cosines, const number *sines, number *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const number *cosine = cosines + row * HEAD_SIZE, *sine = sines + row * HEAD_SIZE;
        for (int head = 0; head < HEADS + KV_HEADS; head++) {
            const number *x = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * HEAD_SIZE;
            number *y = out + (row * (HEADS + KV_HEADS) + head) * HEAD_SIZE;
            const int half = HEAD_SIZE / 2;
            for (int i = 0; i < half; i++) {
                float first = load(x[i]), second = load(x[half + i]);
                y[i] = store(load(store(first * load(cosine[i]))) - load(store(second * load(sine[i]))));
                y[half + i] =
                    store(load(store(second * load(cosine[half + i]))) + load(store(first * load(sine[half + i]))));
            }
        }
    }
}

/* One new token of each row: append its key (from `rotated`) and value (from `qkv`) to the row's cache, of which
   `lengths` tokens are in use, and attend to the whole row. Values are [rows, KV_HEADS, columns, HEAD_SIZE].
   Keys are [rows, KV_HEADS, columns / LANES, HEAD_SIZE / 2, 2 * LANES]: LANES scores are computed at once, from
   two numbers of each key.

   prefix_out [rows, HEADS, HEAD_SIZE] and prefix_sums [rows, HEADS] are the attention to the shared prefix and
   its log-sum-exps, to start from; null if there is none. */
void attend(int threads, long rows, long columns, const int64_t *lengths, const number *rotated,
            const number *qkv, number *keys, number *values, const number *prefix_out, const float *prefix_sums,
            float scale, number *out) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long kv = 0; kv < KV_HEADS; kv++) {
            number *key = keys + (row * KV_HEADS + kv) * columns * HEAD_SIZE;
            number *value = values + (row * KV_HEADS + kv) * columns * HEAD_SIZE;
            const number *new_row = rotated + row * (HEADS + KV_HEADS) * HEAD_SIZE;
            long length = lengths[row];
            for (int i = 0; i < HEAD_SIZE; i++)
                key[(length / LANES * HEAD_SIZE + i / 2 * 2) * LANES + AT(length % LANES, i % 2)] =
                    new_row[(HEADS + kv) * HEAD_SIZE + i];
            memcpy(value + length * HEAD_SIZE,
                   qkv + (row * (HEADS + 2 * KV_HEADS) + HEADS + KV_HEADS + kv) * HEAD_SIZE,
                   HEAD_SIZE * sizeof(number));
            float query[GROUPS][HEAD_SIZE], top[GROUPS], total[GROUPS];
            lanes sums[GROUPS][PAIRS][2];
            for (int g = 0; g < GROUPS; g++) {
                long place = row * HEADS + kv * GROUPS + g;
                top[g] = prefix_out ? prefix_sums[place] : LOWEST;
                total[g] = prefix_out ? 1 : 0;
                for (int i = 0; i < HEAD_SIZE; i++)
                    query[g][i] = load(new_row[(kv * GROUPS + g) * HEAD_SIZE + i]) * scale;
                memset(sums[g], 0, sizeof sums[g]);
                for (int p = 0; prefix_out && p < PAIRS; p++)
                    load_pair(prefix_out + place * HEAD_SIZE + p * 2 * LANES, sums[g][p]);
            }
            for (long start = 0; start <= length; start += BLOCK) {
                long stop = start + BLOCK <= length ? start + BLOCK : length + 1;
                float weights[GROUPS][BLOCK];
                for (long t = start; t < stop; t += LANES) {
                    lanes scores[GROUPS][2] = {{{0}}};
                    for (int i = 0; i < HEAD_SIZE; i += 2) {
                        lanes pair[2];
                        load_pair(key + t * HEAD_SIZE + i * LANES, pair);
                        __builtin_prefetch(key + (t + AHEAD) * HEAD_SIZE + i * LANES);
                        for (int g = 0; g < GROUPS; g++) {
                            scores[g][0] += query[g][i] * pair[0];
                            scores[g][1] += query[g][i + 1] * pair[1];
                        }
                    }
                    for (int g = 0; g < GROUPS; g++) {
                        scores[g][0] += scores[g][1];
                        memcpy(weights[g] + t - start, scores[g], sizeof scores[g][0]);
                    }
                }
                long whole = (stop - start + LANES - 1) / LANES * LANES; /* no scalar rest in the loops below */
                for (int g = 0; g < GROUPS; g++) { /* as FlashAttention (Dao et al. 2022) */
                    for (long t = stop - start; t < whole; t++)
                        weights[g][t] = LOWEST;
                    float highest = top[g], added = 0;
                    for (long t = 0; t < whole; t += LANES)
                        for (int i = 0; i < LANES; i++)
                            highest = weights[g][t + i] > highest ? weights[g][t + i] : highest;
                    for (long t = 0; t < whole; t += LANES)
                        for (int i = 0; i < LANES; i++) {
                            weights[g][t + i] = expf(weights[g][t + i] - highest);
                            added += weights[g][t + i];
                        }
                    float factor = expf(top[g] - highest);
                    total[g] = total[g] * factor + added;
                    top[g] = highest;
                    for (int p = 0; p < PAIRS; p++) {
                        sums[g][p][0] *= factor;
                        sums[g][p][1] *= factor;
                    }
                }
                for (long t = start; t < stop; t++)
                    for (int p = 0; p < PAIRS; p++) {
                        lanes pair[2];
                        load_pair(value + t * HEAD_SIZE + p * 2 * LANES, pair);
                        __builtin_prefetch(value + (t + AHEAD) * HEAD_SIZE + p * 2 * LANES);
                        for (int g = 0; g < GROUPS; g++) {
                            sums[g][p][0] += weights[g][t - start] * pair[0];
                            sums[g][p][1] += weights[g][t - start] * pair[1];
                        }
                    }
            }
            for (int g = 0; g < GROUPS; g++)
                for (int p = 0; p < PAIRS; p++)
                    for (int i = 0; i < LANES; i++)
                        for (int odd = 0; odd < 2; odd++)
                            out[(row * HEADS + kv * GROUPS + g) * HEAD_SIZE + p * 2 * LANES + AT(i, odd)] =
                                store(sums[g][p][odd][i] / total[g]);
        }
}
