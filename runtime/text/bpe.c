/* bpe.c: byte-level byte pair encoding: a word's bytes are tokens, and of all neighbouring pairs that the file lists,
 * the one listed first, leftmost, becomes one token, until none is left.
 *
 * Short words, nearly all, are merged by scanning a small array for the lowest rank. Long ones would take quadratic
 * time that way, so their symbols are a linked list and the pairs wait in a heap; a pair whose symbols have changed
 * meanwhile is dropped when it comes up.
 *
 * In tokenizer.json a byte is written as a printable character ("Ġ" for a space); that alphabet matters here only while
 * loading and for ignore_merges. */
#include "text/text.h"
#include <string.h>

enum { SHORT_WORD = 40 };
static const int32_t NO_RANK = INT32_MAX;

typedef struct lr_bpe_symbol {
    int32_t id; /* -1: merged into the one before */
    int32_t previous, next;
} lr_bpe_symbol;
typedef struct lr_bpe_candidate {
    uint64_t key; /* rank, then position of the left symbol: the order of merging */
    int32_t left, right, id;
} lr_bpe_candidate;

/* ---- the byte alphabet ---------------------------------------------------------------------------------------------- */
/* Bytes that are printable in Latin-1 stand for themselves, the others follow in order from U+0100 on. */
static uint32_t byte_character(unsigned byte)
{
    static const lr_range printable[] = {{'!', '~'}, {0xA1, 0xAC}, {0xAE, 0xFF}};
    uint32_t unprintable = 0x100;
    unsigned from = 0;
    for (size_t i = 0; i < LR_COUNT_OF(printable); i++) {
        if (byte < printable[i].first)
            break;
        if (byte <= printable[i].last)
            return byte;
        unprintable += printable[i].first - from;
        from = printable[i].last + 1;
    }
    return unprintable + byte - from;
}

/* ---- the table of merges -------------------------------------------------------------------------------------------- */
static size_t pair_hash(int32_t left, int32_t right)
{
    return (size_t)lr_hash_mix(LR_HASH_START ^ ((uint64_t)(uint32_t)left << 32 | (uint32_t)right));
}

static lr_merge *merge_slot(const lr_bpe *b, int32_t left, int32_t right)
{
    for (size_t i = pair_hash(left, right) & b->mask;; i = (i + 1) & b->mask) {
        lr_merge *m = &b->merges[i];
        if (m->left < 0 || (m->left == left && m->right == right))
            return m;
    }
}

static inline int32_t merge_find(const lr_bpe *b, int32_t left, int32_t right, int32_t *id)
{
    const lr_merge *m = merge_slot(b, left, right);
    *id = m->id;
    return m->left < 0 ? NO_RANK : m->rank;
}

/* Both sides of a merge: "a b" or ["a", "b"]. */
static int merge_sides(const lr_place *at, const lr_json_node *node, const char *side[2], size_t size[2])
{
    const lr_json_value value = lr_spec_value(node);
    if (value.kind == LR_JSON_STRING) {
        const char *end = value.string + value.length;
        const char *space = memchr(value.string, ' ', (size_t)value.length);
        if (space != NULL && memchr(space + 1, ' ', (size_t)(end - space - 1)) == NULL) {
            side[0] = value.string;
            size[0] = (size_t)(space - value.string);
            side[1] = space + 1;
            size[1] = (size_t)(end - space - 1);
            return LR_OK;
        }
    } else if (value.kind == LR_JSON_ARRAY && value.length == 2) {
        const lr_json_value left = lr_spec_value(lr_spec_item(node, 0)), right = lr_spec_value(lr_spec_item(node, 1));
        if (left.kind == LR_JSON_STRING && right.kind == LR_JSON_STRING) {
            side[0] = left.string;
            size[0] = (size_t)left.length;
            side[1] = right.string;
            size[1] = (size_t)right.length;
            return LR_OK;
        }
    }
    return lr_spec_bad(at, "a merge is \"a b\" or [\"a\", \"b\"]");
}

static int load_merge(lr_bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *value, int32_t rank)
{
    const char *side[2] = {NULL, NULL};
    size_t size[2] = {0, 0};
    int32_t id[3];
    const int status = merge_sides(at, value, side, size);
    if (status != LR_OK)
        return status;
    for (int k = 0; k < 2; k++)
        id[k] = lr_vocab_get(v, side[k], size[k]);
    const uint64_t hash = lr_hash_more(lr_hash_more(LR_HASH_START, side[0], size[0]), side[1], size[1]);
    id[2] = lr_vocab_get_hashed(v, hash, side[0], size[0], side[1], size[1]);
    if (id[0] < 0 || id[1] < 0 || id[2] < 0)
        return lr_spec_bad(at, "\"%.*s\", \"%.*s\" or both together are not in the vocabulary",
                           (int)(size[0] < 60 ? size[0] : 60), side[0], (int)(size[1] < 60 ? size[1] : 60), side[1]);
    *merge_slot(b, id[0], id[1]) = (lr_merge){id[0], id[1], rank, id[2]};
    return LR_OK;
}

static int load_merges(lr_bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *model)
{
    const lr_json_node *merges = NULL;
    int status = lr_spec_array(at, model, "merges", &merges);
    if (status != LR_OK)
        return status;
    const lr_place here = {at, "merges", 0};
    const size_t count = lr_spec_length(merges);
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    b->merges = lr_alloc(slots * sizeof b->merges[0]);
    if (b->merges == NULL)
        return LR_ENOMEM;
    for (size_t i = 0; i < slots; i++)
        b->merges[i].left = -1;
    b->mask = slots - 1;
    int32_t rank = 0;
    for (size_t i = 0; i < count && status == LR_OK; i++) {
        const lr_json_node *node = lr_spec_item(merges, i);
        const lr_json_value value = lr_spec_value(node);
        if (value.kind == LR_JSON_STRING && strncmp(value.string, "#version", 8) == 0)
            continue;
        status = load_merge(b, v, &(lr_place){&here, NULL, i}, node, rank++);
    }
    return status;
}

/* ---- loading -------------------------------------------------------------------------------------------------------- */
/* Settings of BPE that are not byte-level's. Those for unknown characters do no harm where every byte has a token. */
static int refuse_settings(const lr_place *at, const lr_json_node *model, bool all_bytes)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < LR_COUNT_OF(affixes); i++) {
        const char *affix = "";
        const int status = lr_spec_string(at, model, affixes[i], false, &affix, NULL);
        if (status != LR_OK)
            return status;
        if (*affix != 0)
            return lr_spec_unsupported(&(lr_place){at, affixes[i], 0}, "BPE with \"%.60s\"", affix);
    }
    const lr_json_node *dropout = lr_spec_find(model, "dropout");
    if (dropout != NULL && lr_spec_value(dropout).kind != LR_JSON_NUMBER)
        return lr_spec_bad(&(lr_place){at, "dropout", 0}, "expected a number");
    if (lr_spec_value(dropout).number != 0)
        return lr_spec_unsupported(&(lr_place){at, "dropout", 0}, "dropping merges at random (%g)",
                                   lr_spec_value(dropout).number);
    const char *unknown = NULL;
    bool byte_fallback = false, fuse = false;
    int status = lr_spec_string(at, model, "unk_token", false, &unknown, NULL);
    if (status == LR_OK)
        status = lr_spec_bool(at, model, "byte_fallback", false, &byte_fallback);
    if (status == LR_OK)
        status = lr_spec_bool(at, model, "fuse_unk", false, &fuse); /* of unknown tokens, which there are none of */
    if (status == LR_OK && !all_bytes && unknown != NULL)
        return lr_spec_unsupported(&(lr_place){at, "unk_token", 0}, "BPE with an unknown token (\"%.60s\")", unknown);
    if (status == LR_OK && !all_bytes && byte_fallback)
        return lr_spec_unsupported(&(lr_place){at, "byte_fallback", 0}, "BPE with byte fallback");
    return status;
}

int lr_bpe_load(lr_bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *model)
{
    bool all_bytes = true;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[4];
        b->byte_ids[byte] = lr_vocab_get(v, text, (size_t)(lr_utf8_put(text, byte_character(byte)) - text));
        all_bytes = all_bytes && b->byte_ids[byte] >= 0;
    }
    int status = refuse_settings(at, model, all_bytes);
    if (status == LR_OK)
        status = lr_spec_bool(at, model, "ignore_merges", false, &b->ignore_merges);
    if (status == LR_OK)
        status = load_merges(b, v, at, model);
    return status;
}

void lr_bpe_free(lr_bpe *b)
{
    lr_free(b->merges);
    *b = (lr_bpe){0};
}

void lr_bpe_work_free(lr_bpe_work *w)
{
    lr_free(w->symbols);
    lr_free(w->heap);
    *w = (lr_bpe_work){0};
}

/* ---- short words ---------------------------------------------------------------------------------------------------- */
static int short_word(const lr_bpe *b, lr_encoder *e, const char *word, size_t size)
{
    int32_t ids[SHORT_WORD], ranks[SHORT_WORD], merged[SHORT_WORD]; /* [i] of the last two: the pair i, i + 1 */
    int n = 0;
    for (size_t i = 0; i < size; i++) {
        const int32_t id = b->byte_ids[(unsigned char)word[i]];
        if (id >= 0)
            ids[n++] = id;
    }
    for (int i = 0; i + 1 < n; i++)
        ranks[i] = merge_find(b, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = merged[best];
        n--;
        for (int i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i]; /* pair `best` is set below */
            merged[i - 1] = merged[i];
        }
        if (best > 0)
            ranks[best - 1] = merge_find(b, ids[best - 1], ids[best], &merged[best - 1]);
        if (best + 1 < n)
            ranks[best] = merge_find(b, ids[best], ids[best + 1], &merged[best]);
    }
    const int status = lr_reserve((void **)&e->ids, &e->cap, e->count + (size_t)n, sizeof e->ids[0]);
    if (status != LR_OK)
        return status;
    memcpy(e->ids + e->count, ids, (size_t)n * sizeof ids[0]);
    e->count += (size_t)n;
    return LR_OK;
}

/* ---- long words ----------------------------------------------------------------------------------------------------- */
static void heap_push(lr_bpe_candidate *heap, size_t *count, lr_bpe_candidate c)
{
    size_t i = (*count)++;
    for (; i > 0 && heap[(i - 1) / 2].key > c.key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
}

static lr_bpe_candidate heap_pop(lr_bpe_candidate *heap, size_t *count)
{
    const lr_bpe_candidate top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *count; i = child) {
        if (child + 1 < *count && heap[child + 1].key < heap[child].key)
            child++;
        if (last.key <= heap[child].key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

static void propose(const lr_bpe *b, lr_bpe_work *w, size_t *heap_count, int32_t left)
{
    lr_bpe_candidate c = {0, w->symbols[left].id, 0, 0};
    if (w->symbols[left].next < 0)
        return;
    c.right = w->symbols[w->symbols[left].next].id;
    const int32_t rank = merge_find(b, c.left, c.right, &c.id);
    if (rank == NO_RANK)
        return;
    c.key = (uint64_t)(uint32_t)rank << 32 | (uint32_t)left;
    heap_push(w->heap, heap_count, c);
}

static int long_word(const lr_bpe *b, lr_encoder *e, const char *word, size_t size)
{
    lr_bpe_work *w = &e->bpe;
    if (size > INT32_MAX / 4)
        return lr_fail(LR_EINVAL, "a word of %zu bytes is too long to tokenise", size);
    int status = lr_reserve((void **)&w->symbols, &w->symbol_cap, size, sizeof w->symbols[0]);
    if (status == LR_OK) /* each byte proposes one pair, each of at most size - 1 merges two more */
        status = lr_reserve((void **)&w->heap, &w->heap_cap, 3 * size, sizeof w->heap[0]);
    if (status == LR_OK)
        status = lr_reserve((void **)&e->ids, &e->cap, e->count + size, sizeof e->ids[0]);
    if (status != LR_OK)
        return status;
    int32_t n = 0;
    for (size_t i = 0; i < size; i++) {
        const int32_t id = b->byte_ids[(unsigned char)word[i]];
        if (id >= 0) {
            w->symbols[n] = (lr_bpe_symbol){id, n - 1, n + 1};
            n++;
        }
    }
    if (n == 0)
        return LR_OK;
    w->symbols[n - 1].next = -1;
    size_t heap_count = 0;
    for (int32_t i = 0; i < n; i++)
        propose(b, w, &heap_count, i);
    while (heap_count > 0) {
        const lr_bpe_candidate c = heap_pop(w->heap, &heap_count);
        const int32_t left = (int32_t)(uint32_t)c.key, right = w->symbols[left].next;
        if (w->symbols[left].id != c.left || right < 0 || w->symbols[right].id != c.right)
            continue;
        const int32_t next = w->symbols[right].next;
        w->symbols[left].id = c.id;
        w->symbols[left].next = next;
        w->symbols[right].id = -1;
        if (next >= 0)
            w->symbols[next].previous = left;
        if (w->symbols[left].previous >= 0)
            propose(b, w, &heap_count, w->symbols[left].previous);
        propose(b, w, &heap_count, left);
    }
    for (int32_t i = 0; i >= 0; i = w->symbols[i].next)
        e->ids[e->count++] = w->symbols[i].id;
    return LR_OK;
}

/* ---- words ---------------------------------------------------------------------------------------------------------- */
/* The id of the token that is the whole word, written in the byte alphabet, or -1. */
static int whole_word(const lr_vocab *v, lr_encoder *e, const char *word, size_t size, int32_t *id)
{
    *id = -1;
    if (size > v->longest)
        return LR_OK;
    e->spelled.size = 0;
    const int status = lr_string_reserve(&e->spelled, 2 * size);
    if (status != LR_OK)
        return status;
    char *p = e->spelled.data;
    for (size_t i = 0; i < size; i++)
        p = lr_utf8_put(p, byte_character((unsigned char)word[i]));
    *id = lr_vocab_get(v, e->spelled.data, (size_t)(p - e->spelled.data));
    return LR_OK;
}

int lr_bpe_word(const lr_bpe *b, const lr_vocab *v, lr_encoder *e, const char *word, size_t size)
{
    if (b->ignore_merges) {
        int32_t id;
        const int status = whole_word(v, e, word, size, &id);
        if (status != LR_OK || id >= 0)
            return status != LR_OK ? status : lr_encoder_put(e, id);
    }
    return size <= SHORT_WORD ? short_word(b, e, word, size) : long_word(b, e, word, size);
}
