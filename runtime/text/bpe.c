/* bpe.c: byte-level byte pair encoding, a word model. The bytes of a word are its first tokens. Then, as long as there are
 * neighbours that the file lists as a pair, the pair that it lists first is merged into one token; of equal pairs the leftmost one.
 *
 * Nearly all words are short: they are merged by scanning a small array for the lowest rank. That would take quadratic time for
 * long words, so their symbols are a linked list and the pairs wait in a heap. A pair whose symbols have changed meanwhile is
 * dropped when its turn comes.
 *
 * tokenizer.json writes each byte as a printable character ("Ġ" for a space). That alphabet matters here only while loading and
 * for ignore_merges. */
#include "text/text.h"
#include <string.h>

enum { SHORT_WORD = 40 };
static const int32_t NO_RANK = INT32_MAX;

typedef struct merge {
    int32_t left, right; /* the pair; left -1: the slot is empty */
    int32_t rank, id;    /* lower ranks merge first; the pair becomes id */
} merge;
typedef struct bpe {
    merge *merges; /* open addressing */
    size_t mask;
    int32_t byte_ids[256]; /* -1: the byte has no token and is dropped */
    bool ignore_merges;    /* a word that is a token is that token */
} bpe;

typedef struct symbol { /* of a long word */
    int32_t id;         /* -1: merged into the one before */
    int32_t previous, next;
} symbol;
typedef struct candidate { /* a pair that waits to be merged */
    uint64_t key;          /* rank, then position of the left symbol: the order of merging */
    int32_t left, right, id;
} candidate;

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

static merge *merge_slot(const bpe *b, int32_t left, int32_t right)
{
    for (size_t i = pair_hash(left, right) & b->mask;; i = (i + 1) & b->mask) {
        merge *m = &b->merges[i];
        if (m->left < 0 || (m->left == left && m->right == right))
            return m;
    }
}

static inline int32_t merge_find(const bpe *b, int32_t left, int32_t right, int32_t *id)
{
    const merge *m = merge_slot(b, left, right);
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

static int load_merge(bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *value, int32_t rank)
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
    *merge_slot(b, id[0], id[1]) = (merge){id[0], id[1], rank, id[2]};
    return LR_OK;
}

static int load_merges(bpe *b, const lr_vocab *v, const lr_place *at, const lr_json_node *model)
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

static int load_bpe(void *data, lr_vocab *v, const lr_place *at, const lr_json_node *model)
{
    bpe *b = data;
    bool all_bytes = true;
    int status = lr_vocab_load(v, at, model);
    if (status != LR_OK)
        return status;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[4];
        b->byte_ids[byte] = lr_vocab_get(v, text, (size_t)(lr_utf8_put(text, byte_character(byte)) - text));
        all_bytes = all_bytes && b->byte_ids[byte] >= 0;
    }
    status = refuse_settings(at, model, all_bytes);
    if (status == LR_OK)
        status = lr_spec_bool(at, model, "ignore_merges", false, &b->ignore_merges);
    if (status == LR_OK)
        status = load_merges(b, v, at, model);
    return status;
}

static void free_bpe(void *data)
{
    lr_free(((bpe *)data)->merges);
}

/* ---- short words ---------------------------------------------------------------------------------------------------- */
static int short_word(const bpe *b, lr_ids *out, const char *word, size_t size)
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
    const int status = lr_ids_reserve(out, (size_t)n);
    if (status != LR_OK)
        return status;
    memcpy(out->data + out->count, ids, (size_t)n * sizeof ids[0]);
    out->count += (size_t)n;
    return LR_OK;
}

/* ---- long words ----------------------------------------------------------------------------------------------------- */
static void heap_push(candidate *heap, size_t *count, candidate c)
{
    size_t i = (*count)++;
    for (; i > 0 && heap[(i - 1) / 2].key > c.key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
}

static candidate heap_pop(candidate *heap, size_t *count)
{
    const candidate top = heap[0], last = heap[--*count];
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

/* If the file lists the symbol and the one after it as a pair, the pair joins the heap. */
static void propose(const bpe *b, const symbol *symbols, candidate *heap, size_t *heap_count, int32_t left)
{
    candidate c = {0, symbols[left].id, 0, 0};
    if (symbols[left].next < 0)
        return;
    c.right = symbols[symbols[left].next].id;
    const int32_t rank = merge_find(b, c.left, c.right, &c.id);
    if (rank == NO_RANK)
        return;
    c.key = (uint64_t)(uint32_t)rank << 32 | (uint32_t)left;
    heap_push(heap, heap_count, c);
}

static int long_word(const bpe *b, lr_scratch *work, lr_ids *out, const char *word, size_t size)
{
    if (size > INT32_MAX / 4)
        return lr_fail(LR_EINVAL, "a word of %zu bytes is too long to tokenise", size);
    int status = lr_scratch_reserve(work, 0, size, sizeof(symbol));
    if (status == LR_OK) /* each byte proposes one pair, and each of at most size - 1 merges two more */
        status = lr_scratch_reserve(work, 1, 3 * size, sizeof(candidate));
    if (status == LR_OK)
        status = lr_ids_reserve(out, size);
    if (status != LR_OK)
        return status;
    symbol *symbols = work->data[0];
    candidate *heap = work->data[1];
    int32_t n = 0;
    for (size_t i = 0; i < size; i++) {
        const int32_t id = b->byte_ids[(unsigned char)word[i]];
        if (id >= 0) {
            symbols[n] = (symbol){id, n - 1, n + 1};
            n++;
        }
    }
    if (n == 0)
        return LR_OK;
    symbols[n - 1].next = -1;
    size_t heap_count = 0;
    for (int32_t i = 0; i < n; i++)
        propose(b, symbols, heap, &heap_count, i);
    while (heap_count > 0) {
        const candidate c = heap_pop(heap, &heap_count);
        const int32_t left = (int32_t)(uint32_t)c.key, right = symbols[left].next;
        if (symbols[left].id != c.left || right < 0 || symbols[right].id != c.right)
            continue;
        const int32_t next = symbols[right].next;
        symbols[left].id = c.id;
        symbols[left].next = next;
        symbols[right].id = -1;
        if (next >= 0)
            symbols[next].previous = left;
        if (symbols[left].previous >= 0)
            propose(b, symbols, heap, &heap_count, symbols[left].previous);
        propose(b, symbols, heap, &heap_count, left);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next)
        out->data[out->count++] = symbols[i].id;
    return LR_OK;
}

/* ---- words ---------------------------------------------------------------------------------------------------------- */
/* The id of the token that is the whole word, written in the byte alphabet, or -1. */
static int whole_word(const lr_vocab *v, lr_scratch *work, const char *word, size_t size, int32_t *id)
{
    *id = -1;
    if (size > v->longest)
        return LR_OK;
    const int status = lr_scratch_reserve(work, 0, size, 2); /* the alphabet ends below U+0800 */
    if (status != LR_OK)
        return status;
    char *const spelled = work->data[0], *p = spelled;
    for (size_t i = 0; i < size; i++)
        p = lr_utf8_put(p, byte_character((unsigned char)word[i]));
    *id = lr_vocab_get(v, spelled, (size_t)(p - spelled));
    return LR_OK;
}

static int bpe_word(const void *data, const lr_vocab *v, lr_scratch *work, lr_ids *ids, const char *word, size_t size)
{
    const bpe *b = data;
    if (b->ignore_merges) {
        int32_t id;
        const int status = whole_word(v, work, word, size, &id);
        if (status != LR_OK || id >= 0)
            return status != LR_OK ? status : lr_ids_put(ids, id);
    }
    return size <= SHORT_WORD ? short_word(b, ids, word, size) : long_word(b, work, ids, word, size);
}

const lr_word_model lr_bpe = {.kind = {.type = "BPE", .keys = {"vocab", "merges"}},
                              .byte_level = true,
                              .size = sizeof(bpe),
                              .load = load_bpe,
                              .free = free_bpe,
                              .word = bpe_word};
