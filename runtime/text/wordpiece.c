/* wordpiece.c: WordPiece, the word model of BERT. A word is cut from the left into the longest tokens of the vocabulary; those
 * after the first begin with a prefix ("##"). A word that cannot be cut, or is too long, is one unknown token.
 *
 * The longest token is found in one pass: the hash grows with each character, and each length is looked up. Lengths beyond the
 * longest token of the vocabulary are not tried, so the time is linear in the word. */
#include "text/text.h"
#include <string.h>

typedef struct wordpiece {
    char *prefix; /* of tokens that continue a word: "##" */
    size_t prefix_size;
    uint64_t prefix_hash;
    size_t longest; /* bytes of the longest token */
    int64_t max_chars;
    int32_t unknown;
} wordpiece;

static int load_wordpiece(void *data, lr_vocab *v, const lr_place *at, const lr_json_node *model)
{
    wordpiece *w = data;
    const char *unknown = "[UNK]", *prefix = "##";
    size_t unknown_size = 5, prefix_size = 2;
    w->max_chars = 100;
    int status = lr_vocab_load(v, at, model);
    if (status == LR_OK)
        status = lr_spec_string(at, model, "unk_token", true, &unknown, &unknown_size);
    if (status == LR_OK)
        status = lr_spec_string(at, model, "continuing_subword_prefix", true, &prefix, &prefix_size);
    if (status == LR_OK)
        status = lr_spec_integer(at, model, "max_input_chars_per_word", true, 0, LR_SPEC_LARGEST, &w->max_chars);
    if (status != LR_OK)
        return status;
    w->unknown = lr_vocab_get(v, unknown, unknown_size);
    if (w->unknown < 0)
        return lr_spec_bad(&(lr_place){at, "unk_token", 0}, "\"%.60s\" is not in the vocabulary", unknown);
    w->prefix = lr_strndup(prefix, prefix_size);
    if (w->prefix == NULL)
        return LR_ENOMEM;
    w->prefix_size = prefix_size;
    w->prefix_hash = lr_hash_more(LR_HASH_START, prefix, prefix_size);
    w->longest = v->longest;
    return LR_OK;
}

static void free_wordpiece(void *data)
{
    lr_free(((wordpiece *)data)->prefix);
}

static bool too_long(const wordpiece *w, const char *word, size_t size)
{
    if ((int64_t)size <= w->max_chars)
        return false;
    int64_t chars = 0;
    for (size_t i = 0; i < size; i++)
        chars += ((unsigned char)word[i] & 0xC0) != 0x80;
    return chars > w->max_chars;
}

static int wordpiece_word(const void *data, const lr_vocab *v, lr_scratch *unused, lr_ids *ids, const char *word,
                          size_t size)
{
    (void)unused;
    const wordpiece *w = data;
    const size_t before = ids->count;
    const char *const end = word + size;
    if (too_long(w, word, size))
        return lr_ids_put(ids, w->unknown);
    for (const char *p = word; p < end;) {
        const bool first = p == word;
        const size_t prefix_size = first ? 0 : w->prefix_size;
        uint64_t hash = first ? LR_HASH_START : w->prefix_hash;
        const char *q = p, *best_end = NULL;
        int32_t best = -1;
        while (q < end && prefix_size + (size_t)(q - p) <= w->longest) {
            const char *at = q;
            lr_utf8_next(&q);
            hash = lr_hash_more(hash, at, (size_t)(q - at));
            const int32_t id = lr_vocab_get_hashed(v, hash, w->prefix, prefix_size, p, (size_t)(q - p));
            if (id >= 0) {
                best = id;
                best_end = q;
            }
        }
        if (best < 0) {
            ids->count = before;
            return lr_ids_put(ids, w->unknown);
        }
        const int status = lr_ids_put(ids, best);
        if (status != LR_OK)
            return status;
        p = best_end;
    }
    return LR_OK;
}

const lr_word_model lr_wordpiece = {
    .kind = {.type = "WordPiece",
             .keys = {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"}},
    .size = sizeof(wordpiece),
    .load = load_wordpiece,
    .free = free_wordpiece,
    .word = wordpiece_word};
