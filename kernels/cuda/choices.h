/* choices.h: which of a library's algorithms makes a matrix product is measured once, then kept in a file.
 *
 * The fastest algorithm is not known beforehand, and each rounds in its own way. So those that the library prefers are timed,
 * and the choice is kept in the user's cache: later runs measure nothing and get the same bits. In deterministic mode, the
 * default, only a choice that is kept there, or the library's own first choice, is ever used: where no file can be written,
 * nothing is timed, for the next run might measure otherwise; and where nothing can be timed, the library's first choice is
 * kept. Where every algorithm fails, which is the device's fault, nothing is kept.
 *
 * A file is for one kind of GPU and one version of the library. Ranks that choose at the same time agree: all use the choice
 * that was written first. This part knows neither CUDA nor the library (cublaslt.c does), so it is tested without a GPU. */
#ifndef LR_CUDA_CHOICES_H
#define LR_CUDA_CHOICES_H

#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { LR_CHOICE_CANDIDATES = 16, LR_CHOICE_SLOTS = 8192 };

/* All that the choice depends on. Keys are compared as bytes: make them by memset and assignment. */
typedef struct lr_choice_key {
    int64_t m, n, k, ld[4];
    uint32_t alignment[4]; /* bytes, of the matrices' addresses */
    int32_t dtype[4];
    uint8_t a_transposed, b_transposed, biased, accumulates;
    uint8_t deterministic; /* what the candidates were restricted to */
    uint8_t tf32;          /* f32 may be multiplied as TF32 */
    uint8_t unused[2];     /* no padding: see above */
} lr_choice_key;

/* As the library describes it; the bytes have a meaning for the same version of the library only. */
typedef struct lr_algorithm {
    uint64_t words[8];
} lr_algorithm;

/* The library, for one product. */
typedef struct lr_choice_library {
    void *product;
    /* At most LR_CHOICE_CANDIDATES, the preferred one first; 0: the library cannot make this product. */
    int (*candidates)(void *product, lr_algorithm *out, int *count);
    /* Seconds that `runs` products in a row take. A failure means that this algorithm cannot be used. NULL: nothing can be
     * timed. */
    int (*seconds)(void *product, const lr_algorithm *algorithm, int runs, double *seconds);
} lr_choice_library;

typedef struct lr_choice {
    lr_choice_key key;
    lr_algorithm algorithm;
    int64_t nanoseconds; /* of one product; 0: the library's first choice, not timed */
    bool used;
} lr_choice;

/* The choices so far. Zeroed memory is an empty table without a file. */
typedef struct lr_choices {
    char path[512]; /* empty: no file */
    char gpu[256];
    int64_t version; /* of the library */
    int count;
    lr_choice slots[LR_CHOICE_SLOTS];
} lr_choices;

/* Read what is kept for this GPU and version in `folder` (NULL: lorarun's cache), which is made if needed. A file that is
 * damaged or is not for this GPU and version is reported in one line on standard error, and the next choice replaces it. Never
 * fails: without a file everything works, but slower. */
void lr_choices_open(lr_choices *c, const char *folder, const char *gpu, int64_t version);

/* Was one chosen before? Then *out is it. */
bool lr_chosen(lr_choices *c, const lr_choice_key *key, lr_algorithm *out);

/* The algorithm for `key`: as chosen before, or chosen now. LR_EUNSUPPORTED: the library has none. */
int lr_choose(lr_choices *c, const lr_choice_key *key, const lr_choice_library *library, lr_algorithm *out);

/* The number of tokens that a choice for n tokens is made for: n rounded up to a multiple of 16 up to 128, then of 128, and from
 * 1024 on to one of eight steps between two powers of two. So few choices have to be timed, and each was timed with a size close
 * to n. */
int64_t lr_choice_tokens(int64_t n);

#ifdef __cplusplus
}
#endif

#endif
