/* encoder.c: encoding with a tokenizer on one thread. An encoder has working memory and a cache of words; a tokenizer keeps a pool
 * of encoders.
 *
 * The cache maps words to ids. Text repeats itself, so nearly all words come from it. An entry is 64 bytes, one cache line; each
 * slot holds the newest of its words. A key is the word, padded with zeros, and its length in the last byte, so equal keys are
 * equal words. */
#include "text/text.h"
#include <pthread.h>
#include <string.h>

enum { CACHE_SLOTS = 1 << 15, KEY_WORDS = 4, KEY_ROOM = 8 * KEY_WORDS - 1, CACHED_IDS = 7, CACHE_LINE = 64 };
enum { KEPT_BUFFER = 1 << 20 }; /* bytes of a buffer that an encoder keeps for the next text */

typedef struct lr_cached_word {
    uint64_t key[KEY_WORDS]; /* all zero: empty, for no word has length 0 */
    int32_t ids[CACHED_IDS];
    int32_t count;
} lr_cached_word;

/* ---- words ---------------------------------------------------------------------------------------------------------- */
static size_t slot_of(const uint64_t key[KEY_WORDS])
{
    uint64_t h = key[0] * 0x9E3779B97F4A7C15u;
    h = (h ^ (h >> 32) ^ key[1]) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 32) ^ key[2]) * 0x94D049BB133111EBu;
    h = (h ^ (h >> 32) ^ key[3]) * 0xD6E8FEB86659FD93u;
    return (size_t)(h >> 32) & (CACHE_SLOTS - 1);
}

static int compute_word(lr_encoder *e, const char *word, size_t size)
{
    const lr_tokenizer *t = e->tokenizer;
    return t->model->word(t->model_data, &t->vocab, &e->scratch, &e->ids, word, size);
}

static int cached_word(lr_encoder *e, const char *word, size_t size)
{
    uint64_t key[KEY_WORDS] = {0};
    memcpy(key, word, size);
    ((unsigned char *)key)[KEY_ROOM] = (unsigned char)size;
    lr_cached_word *slot = &e->cache[slot_of(key)];
    if (memcmp(slot->key, key, sizeof key) == 0) {
        const int status = lr_ids_reserve(&e->ids, CACHED_IDS);
        if (status != LR_OK)
            return status;
        memcpy(e->ids.data + e->ids.count, slot->ids, sizeof slot->ids);
        e->ids.count += (size_t)slot->count;
        return LR_OK;
    }
    const size_t before = e->ids.count;
    const int status = compute_word(e, word, size);
    if (status == LR_OK && e->ids.count - before <= CACHED_IDS) {
        memcpy(slot->key, key, sizeof key);
        slot->count = (int32_t)(e->ids.count - before);
        memcpy(slot->ids, e->ids.data + before, (e->ids.count - before) * sizeof slot->ids[0]);
    }
    return status;
}

/* Append a word's ids; LR_STOP at the limit. */
static int encode_word(void *encoder, const char *word, size_t size)
{
    lr_encoder *e = encoder;
    const int status = size <= KEY_ROOM ? cached_word(e, word, size) : compute_word(e, word, size);
    return status == LR_OK && e->ids.count >= e->limit ? LR_STOP : status;
}

/* ---- texts ---------------------------------------------------------------------------------------------------------- */
static int encode_normalized(lr_encoder *e, const char *text, size_t size)
{
    return size == 0 ? LR_OK
                     : lr_pretokenizer_run(&e->tokenizer->pretokenizer, &e->work, &(lr_word_sink){encode_word, e}, text,
                                           size);
}

/* Cut the tokens of one trie out of the text and encode the pieces between them. */
static int encode_around(lr_encoder *e, const lr_trie *trie, const char *text, size_t size,
                         int (*piece)(lr_encoder *, const char *, size_t))
{
    lr_added_search search;
    if (trie->count == 0)
        return piece(e, text, size);
    lr_added_start(&search, &e->tokenizer->added, trie, text, size);
    for (;;) {
        size_t begin, end;
        const int32_t id = lr_added_next(&search, &begin, &end);
        int status = piece(e, text + begin, end - begin);
        if (status == LR_OK && id >= 0)
            status = lr_ids_put(&e->ids, id);
        if (status == LR_OK && e->ids.count >= e->limit)
            status = LR_STOP;
        if (status != LR_OK || id < 0)
            return status;
    }
}

static int encode_raw(lr_encoder *e, const char *text, size_t size)
{
    if (size == 0)
        return LR_OK;
    const int status = lr_normalizer_run(&e->tokenizer->normalizer, &e->work, &text, &size);
    if (status != LR_OK || size == 0)
        return status;
    return encode_around(e, &e->tokenizer->added.normalized, text, size, encode_normalized);
}

int lr_encoder_text(lr_encoder *e, const char *text, size_t size)
{
    e->ids.count = 0;
    if (e->limit == 0)
        return LR_OK;
    const int status = encode_around(e, &e->tokenizer->added.raw, text, size, encode_raw);
    if (status < 0)
        return status;
    if (e->ids.count > e->limit)
        e->ids.count = e->limit;
    return LR_OK;
}

/* ---- life ----------------------------------------------------------------------------------------------------------- */
int lr_encoder_new(lr_encoder **out, const lr_tokenizer *t)
{
    lr_encoder *e = lr_calloc(1, sizeof *e);
    if (e == NULL)
        return LR_ENOMEM;
    e->tokenizer = t;
    e->cache_memory = lr_calloc(1, CACHE_SLOTS * sizeof(lr_cached_word) + CACHE_LINE);
    const int status = e->cache_memory == NULL ? LR_ENOMEM : lr_matcher_init(&e->work.matcher);
    if (status != LR_OK) {
        lr_encoder_free(e);
        return status;
    }
    const uintptr_t at = (uintptr_t)e->cache_memory;
    e->cache = (lr_cached_word *)((at + CACHE_LINE - 1) & ~(uintptr_t)(CACHE_LINE - 1));
    *out = e;
    return LR_OK;
}

static void free_buffers(lr_encoder *e)
{
    lr_free(e->ids.data);
    e->ids = (lr_ids){0};
    for (int i = 0; i < 2; i++) {
        lr_string_free(&e->work.text[i]);
        lr_free(e->scratch.data[i]);
    }
    e->scratch = (lr_scratch){0};
    lr_string_free(&e->work.spaced);
    lr_free(e->work.code_points.data);
    e->work.code_points = (lr_code_points){0};
}

void lr_encoder_free(lr_encoder *e)
{
    if (e == NULL)
        return;
    free_buffers(e);
    lr_matcher_free(&e->work.matcher);
    lr_free(e->cache_memory);
    lr_free(e);
}

struct lr_encoder_pool {
    pthread_mutex_t lock;
    lr_encoder *idle;
};

int lr_encoder_pool_new(lr_encoder_pool **out)
{
    lr_encoder_pool *p = lr_calloc(1, sizeof *p);
    if (p == NULL)
        return LR_ENOMEM;
    if (pthread_mutex_init(&p->lock, NULL) != 0) {
        lr_free(p);
        return lr_fail(LR_ENOMEM, "no mutex for a tokenizer");
    }
    *out = p;
    return LR_OK;
}

void lr_encoder_pool_free(lr_encoder_pool *p)
{
    if (p == NULL)
        return;
    while (p->idle != NULL) {
        lr_encoder *e = p->idle;
        p->idle = e->next;
        lr_encoder_free(e);
    }
    pthread_mutex_destroy(&p->lock);
    lr_free(p);
}

int lr_encoder_take(lr_encoder **out, const lr_tokenizer *t)
{
    pthread_mutex_lock(&t->pool->lock);
    lr_encoder *e = t->pool->idle;
    if (e != NULL)
        t->pool->idle = e->next;
    pthread_mutex_unlock(&t->pool->lock);
    if (e == NULL)
        return lr_encoder_new(out, t);
    *out = e;
    return LR_OK;
}

void lr_encoder_give(lr_encoder *e)
{
    lr_encoder_pool *p = e->tokenizer->pool;
    const lr_text_work *w = &e->work;
    if (e->ids.cap * sizeof e->ids.data[0] > KEPT_BUFFER || w->text[0].cap > KEPT_BUFFER ||
        w->text[1].cap > KEPT_BUFFER || w->spaced.cap > KEPT_BUFFER || e->scratch.cap[0] > KEPT_BUFFER)
        free_buffers(e);
    pthread_mutex_lock(&p->lock);
    e->next = p->idle;
    p->idle = e;
    pthread_mutex_unlock(&p->lock);
}
