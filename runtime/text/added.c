/* added.c: added tokens: strings such as "<|endoftext|>" or "[MASK]" that are cut out of the text whole and have ids of their own.
 *
 * A trie finds them, at each place the longest one. Only bytes that begin a token are looked at, so hundreds of tokens cost no more
 * than one. Ids follow Hugging Face, not the file's "id": a token of the model's vocabulary keeps its id there, the others are
 * numbered from the size of that vocabulary on, in the order of the file. */
#include "text/text.h"
#include <string.h>

/* ---- the trie ------------------------------------------------------------------------------------------------------- */
static int32_t find_sibling(const lr_trie *t, int32_t node, unsigned char byte)
{
    while (node != 0 && t->nodes[node].byte != byte)
        node = t->nodes[node].sibling;
    return node;
}

/* If two tokens are the same string, the first one counts. */
static int trie_insert(lr_trie *t, const char *text, size_t size, int32_t token)
{
    if (t->count + size >= INT32_MAX)
        return lr_fail(LR_EUNSUPPORTED, "the added tokens of a tokenizer have more than 2 GB of text");
    const int status = lr_reserve((void **)&t->nodes, &t->cap, t->count + size + 1, sizeof t->nodes[0]);
    if (status != LR_OK)
        return status;
    if (t->count == 0)
        t->nodes[t->count++] = (lr_trie_node){0, 0, -1, 0};
    int32_t *link = &t->root[(unsigned char)text[0]], node = 0;
    for (size_t i = 0; i < size; i++) {
        const unsigned char byte = (unsigned char)text[i];
        node = find_sibling(t, *link, byte);
        if (node == 0) {
            node = (int32_t)t->count++;
            t->nodes[node] = (lr_trie_node){0, *link, -1, byte};
            *link = node;
        }
        link = &t->nodes[node].child;
    }
    if (t->nodes[node].token < 0)
        t->nodes[node].token = token;
    return LR_OK;
}

static void trie_finish(lr_trie *t)
{
    int first_bytes = 0;
    t->only = -1;
    for (int byte = 0; byte < 256; byte++)
        if (t->root[byte] != 0) {
            first_bytes++;
            t->only = byte;
        }
    if (first_bytes != 1)
        t->only = -1;
}

/* The longest token that begins at text; its size, or 0. */
static size_t trie_longest(const lr_trie *t, const char *text, size_t size, int32_t *token)
{
    size_t longest = 0;
    int32_t node = t->root[(unsigned char)text[0]];
    for (size_t i = 1; node != 0; i++) {
        if (t->nodes[node].token >= 0) {
            *token = t->nodes[node].token;
            longest = i;
        }
        if (i == size)
            break;
        node = find_sibling(t, t->nodes[node].child, (unsigned char)text[i]);
    }
    return longest;
}

/* The next place from `from` on where a token may begin, or size. */
static size_t trie_candidate(const lr_trie *t, const char *text, size_t from, size_t size)
{
    if (t->count == 0 || from >= size)
        return size;
    if (t->only >= 0) {
        const char *at = memchr(text + from, t->only, size - from);
        return at == NULL ? size : (size_t)(at - text);
    }
    while (from < size && t->root[(unsigned char)text[from]] == 0)
        from++;
    return from;
}

/* ---- loading -------------------------------------------------------------------------------------------------------- */
typedef struct token_spec {
    const char *text;
    size_t size;
    lr_added_token token;
} token_spec;

static int check_size(const lr_place *at, size_t size)
{
    return size <= LR_TEXT_ADDED_BYTES
               ? LR_OK
               : lr_spec_unsupported(at, "an added token of %zu bytes; at most %d are supported", size,
                                     LR_TEXT_ADDED_BYTES);
}

static int read_token(token_spec *s, const lr_place *at, const lr_json_node *spec)
{
    int64_t id = 0;
    *s = (token_spec){0};
    int status = lr_spec_string(at, spec, "content", true, &s->text, &s->size);
    if (status == LR_OK)
        status = check_size(&(lr_place){at, "content", 0}, s->size);
    if (status == LR_OK)
        status = lr_spec_integer(at, spec, "id", true, 0, LR_TOKEN_ID_LIMIT - 1, &id);
    const struct {
        const char *key;
        bool *value;
    } flags[] = {{"special", &s->token.special},
                 {"single_word", &s->token.single_word},
                 {"lstrip", &s->token.lstrip},
                 {"rstrip", &s->token.rstrip},
                 {"normalized", &s->token.normalized}};
    for (size_t i = 0; i < LR_COUNT_OF(flags) && status == LR_OK; i++)
        status = lr_spec_bool(at, spec, flags[i].key, true, flags[i].value);
    s->token.id = (int32_t)id;
    return status;
}

static bool same_flags(const lr_added_token *a, const lr_added_token *b)
{
    return a->single_word == b->single_word && a->lstrip == b->lstrip && a->rstrip == b->rstrip &&
           a->normalized == b->normalized && a->special == b->special;
}

/* Give the token its id and remember it. `seen` maps each token to its index in a->tokens. */
static int add(lr_added *a, const lr_vocab *v, lr_vocab *seen, token_spec *s, int32_t *next_id, bool given_ids,
               const lr_place *at)
{
    const int32_t known = lr_vocab_get(seen, s->text, s->size);
    if (known >= 0) /* a repetition does no harm if it says the same */
        return same_flags(&a->tokens[known], &s->token)
                   ? LR_OK
                   : lr_spec_bad(at, "the token \"%.60s\" is there twice, with other flags", s->text);
    if (!given_ids)
        s->token.id = lr_vocab_get(v, s->text, s->size);
    if (s->token.id < 0)
        s->token.id = (*next_id)++;
    if (s->token.id >= LR_TOKEN_ID_LIMIT)
        return lr_spec_bad(at, "more than %d tokens", LR_TOKEN_ID_LIMIT);
    const char *other = lr_vocab_token(&a->vocab, s->token.id);
    if (other != NULL)
        return lr_spec_bad(at, "the token \"%.60s\" has the id %d, as the token \"%.60s\" has", s->text,
                           (int)s->token.id, other);
    int status = lr_vocab_put(&a->vocab, s->text, s->size, s->token.id);
    if (status == LR_OK)
        status = lr_vocab_put(seen, s->text, s->size, (int32_t)a->count);
    if (status == LR_OK)
        status = lr_reserve((void **)&a->tokens, &a->cap, a->count + 1, sizeof a->tokens[0]);
    if (status == LR_OK)
        a->tokens[a->count++] = s->token;
    return status;
}

/* Enter the token's string into the trie of its kind. */
static int insert(lr_added *a, const lr_normalizer *n, lr_text_work *work, const token_spec *s, int32_t index,
                  const lr_place *at)
{
    const char *text = s->text;
    size_t size = s->size;
    if (!s->token.normalized)
        return trie_insert(&a->raw, text, size, index);
    int status = lr_normalizer_run(n, work, &text, &size);
    if (status == LR_OK)
        status = check_size(&(lr_place){at, "content", 0}, size);
    if (status != LR_OK)
        return status;
    if (size == 0)
        return lr_spec_unsupported(at, "the token \"%.60s\" is empty once normalised", s->text);
    return trie_insert(&a->normalized, text, size, index);
}

static int load_list(lr_added *a, const lr_vocab *v, lr_vocab *seen, const lr_normalizer *n, lr_text_work *work,
                     const lr_place *at, const lr_json_node *list, bool given_ids)
{
    token_spec s;
    int32_t next_id = (int32_t)v->count;
    int status = LR_OK;
    for (size_t i = 0; status == LR_OK && i < lr_spec_length(list); i++) {
        const lr_place token = {at, NULL, i};
        status = read_token(&s, &token, lr_spec_item(list, i));
        if (status == LR_OK && s.size > 0)
            status = add(a, v, seen, &s, &next_id, given_ids, &token);
    }
    for (int special = 1; special >= 0; special--) /* special ones first: of equal strings, those count */
        for (size_t i = 0; status == LR_OK && i < lr_spec_length(list); i++) {
            const lr_place token = {at, NULL, i};
            status = read_token(&s, &token, lr_spec_item(list, i));
            if (status == LR_OK && s.size > 0 && s.token.special == (special == 1))
                status = insert(a, n, work, &s, lr_vocab_get(seen, s.text, s.size), &token);
        }
    return status;
}

int lr_added_load(lr_added *a, const lr_vocab *v, const lr_normalizer *n, lr_text_work *work, const lr_place *at,
                  const lr_json_node *list, bool given_ids)
{
    lr_vocab seen = {0};
    const int status = load_list(a, v, &seen, n, work, at, list, given_ids);
    lr_vocab_free(&seen);
    trie_finish(&a->raw);
    trie_finish(&a->normalized);
    return status;
}

void lr_added_free(lr_added *a)
{
    lr_free(a->tokens);
    lr_free(a->raw.nodes);
    lr_free(a->normalized.nodes);
    lr_vocab_free(&a->vocab);
    *a = (lr_added){0};
}

/* ---- searching ------------------------------------------------------------------------------------------------------ */
static size_t spaces_before(const char *text, size_t at)
{
    while (at > 0) {
        const char *previous = lr_utf8_previous(text, text + at), *p = previous;
        if (!lr_char_is(lr_utf8_next(&p), LR_CHAR_SPACE))
            break;
        at = (size_t)(previous - text);
    }
    return at;
}

static size_t spaces_after(const char *text, size_t at, size_t size)
{
    while (at < size) {
        const char *p = text + at;
        if (!lr_char_is(lr_utf8_next(&p), LR_CHAR_SPACE))
            break;
        at = (size_t)(p - text);
    }
    return at;
}

static bool within_word(const char *text, size_t begin, size_t end, size_t size)
{
    const char *after = text + end, *before = begin > 0 ? lr_utf8_previous(text, text + begin) : NULL;
    return (before != NULL && lr_char_is(lr_utf8_next(&before), LR_CHAR_WORD)) ||
           (end < size && lr_char_is(lr_utf8_next(&after), LR_CHAR_WORD));
}

void lr_added_start(lr_added_search *s, const lr_added *a, const lr_trie *trie, const char *text, size_t size)
{
    *s = (lr_added_search){a, trie, text, size, 0, 0};
}

int32_t lr_added_next(lr_added_search *s, size_t *begin, size_t *end)
{
    for (;;) {
        int32_t index = -1;
        size_t at = trie_candidate(s->trie, s->text, s->from, s->size);
        if (at == s->size)
            break;
        const size_t size = trie_longest(s->trie, s->text + at, s->size - at, &index);
        s->from = at + (size > 0 ? size : 1);
        if (size == 0)
            continue;
        const lr_added_token *token = &s->added->tokens[index];
        size_t stop = at + size;
        if (token->special && s->added->split_special)
            continue;
        if (token->single_word && within_word(s->text, at, stop, s->size))
            continue;
        if (token->lstrip)
            at = spaces_before(s->text, at);
        if (token->rstrip)
            stop = spaces_after(s->text, stop, s->size);
        *begin = s->done;
        *end = at > s->done ? at : s->done;
        s->done = stop;
        return token->id;
    }
    *begin = s->done;
    *end = s->size;
    s->done = s->size;
    return -1;
}
