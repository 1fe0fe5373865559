/* bench_tokenizer.c: how fast text becomes ids, on one thread.  bench_tokenizer [TOKENIZER TEXT]...
 *
 * Cold is the first pass with a new tokenizer, warm the best of the next ones, in texts of up to 4000 bytes as training
 * reads them; "whole" is the text as one. Without arguments: this repository's small tokenizers on its own C sources,
 * which is enough to see changes; a real vocabulary is faster, because a word then has fewer tokens. */
#include "core/core.h"
#include <stdio.h>
#include <string.h>

enum { PIECE = 4000, WARM_PASSES = 5 };

static int fail(void)
{
    fprintf(stderr, "bench_tokenizer: %s\n", lr_last_error());
    return 1;
}

/* Encode the text in pieces of at most `piece` bytes that end at a line's end where there is one; tokens, or -1. */
static int64_t pass(const lr_tokenizer *tok, const char *text, int64_t size, int64_t piece, int32_t *ids, int64_t cap)
{
    int64_t tokens = 0;
    for (int64_t at = 0; at < size;) {
        int64_t end = lr_min64(at + piece, size), count = 0;
        while (end < size && end > at + 1 && text[end - 1] != '\n')
            end--;
        if (end <= at + 1)
            end = lr_min64(at + piece, size);
        while (end < size && ((unsigned char)text[end] & 0xC0) == 0x80)
            end++;
        if (lr_tokenizer_encode(tok, text + at, end - at, 1, 0, ids, cap, &count) != LR_OK)
            return -1;
        tokens += count;
        at = end;
    }
    return tokens;
}

static int bench(const char *tokenizer, const char *name, const char *text, int64_t size)
{
    lr_tokenizer *tok;
    double start = lr_time();
    if (lr_tokenizer_load(&tok, tokenizer) != LR_OK)
        return fail();
    printf("%s: %lld tokens, loaded in %.0f ms; %s, %.2f MB\n", tokenizer, (long long)lr_tokenizer_vocab_size(tok),
           1e3 * (lr_time() - start), name, (double)size / 1e6);
    const int64_t cap = 20 * size + 64;
    int32_t *ids = lr_alloc((size_t)cap * sizeof ids[0]);
    int64_t tokens = ids == NULL ? -1 : 0;
    static const char *const labels[] = {"cold", "warm", "whole"};
    for (int k = 0; k < 3 && tokens >= 0; k++) {
        double best = 1e30;
        for (int i = 0; i < (k == 0 ? 1 : WARM_PASSES) && tokens >= 0; i++) {
            start = lr_time();
            tokens = pass(tok, text, size, k == 2 ? size : PIECE, ids, cap);
            const double seconds = lr_time() - start;
            best = seconds < best ? seconds : best;
        }
        printf("  %-5s %7.1f MB/s %7.2f Mtokens/s\n", labels[k], (double)size / best / 1e6,
               (double)tokens / best / 1e6);
    }
    lr_free(ids);
    lr_tokenizer_free(tok);
    return tokens < 0 ? fail() : 0;
}

/* All C sources of one folder of the repository, one after the other. */
static int read_sources(char **text, int64_t *size, const char *folder)
{
    char *names;
    int64_t count;
    int status = lr_dir_list(folder, &names, &count);
    *text = NULL;
    *size = 0;
    const char *name = names;
    for (int64_t i = 0; status == LR_OK && i < count; i++, name += strlen(name) + 1) {
        char *path = lr_format("%s/%s", folder, name), *part = NULL;
        int64_t n = 0;
        status = path == NULL ? LR_ENOMEM : lr_file_read(path, &part, &n);
        char *grown = status == LR_OK ? lr_realloc(*text, (size_t)(*size + n + 1)) : NULL;
        if (grown != NULL) {
            memcpy(grown + *size, part, (size_t)n);
            *text = grown;
            *size += n;
        }
        lr_free(path);
        lr_free(part);
    }
    if (status == LR_OK)
        lr_free(names);
    return status;
}

/* This repository, from where this file was compiled. */
static char *in_repository(const char *name)
{
    static const char here[] = __FILE__, tail[] = "bench/bench_tokenizer.c";
    return lr_format("%.*s%s", (int)(sizeof here - sizeof tail), here, name);
}

/* Without arguments. */
static int bench_ourselves(void)
{
    static const char *const tokenizers[] = {"tests/golden/tokenizer/qwen2", "tests/golden/tokenizer/bert"};
    char *folder = in_repository("runtime/text"), *text = NULL;
    int64_t size = 0;
    int failed = folder == NULL || read_sources(&text, &size, folder) != LR_OK ? fail() : 0;
    for (size_t i = 0; i < LR_COUNT_OF(tokenizers) && !failed; i++) {
        char *tokenizer = in_repository(tokenizers[i]);
        failed = tokenizer == NULL ? fail() : bench(tokenizer, folder, text, size);
        lr_free(tokenizer);
    }
    lr_free(folder);
    lr_free(text);
    return failed;
}

int main(int argc, char **argv)
{
    char *text = NULL;
    int64_t size = 0;
    int failed = 0;
    if (argc % 2 == 0) {
        fprintf(stderr, "usage: bench_tokenizer [TOKENIZER TEXT]...\n");
        return 2;
    }
    for (int i = 1; i + 1 < argc && !failed; i += 2) {
        failed = lr_file_read(argv[i + 1], &text, &size) != LR_OK ? fail() : bench(argv[i], argv[i + 1], text, size);
        lr_free(text);
        text = NULL;
    }
    return argc == 1 ? bench_ourselves() : failed;
}
