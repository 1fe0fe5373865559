/* vocab.c: a vocabulary. Two tables share one pool of strings: a hash table from token to id, and an array from id to token.
 *
 * If a file gives two tokens the same id, the array has the later one. If it has a token twice, the later id counts. */
#include "text/text.h"
#include <string.h>

enum { FREE_IDS = 1 << 20 }; /* ids up to here cost little memory; larger ones must be few for the number of tokens */

static uint32_t fold(uint64_t hash)
{
    hash ^= hash >> 29;
    hash *= 0xBF58476D1CE4E5B9u;
    return (uint32_t)(hash >> 32);
}

int lr_vocab_reserve(lr_vocab *v, size_t tokens)
{
    size_t slots = 16;
    while (slots < 2 * tokens)
        slots *= 2;
    if (v->slots != NULL && slots <= v->mask + 1)
        return LR_OK;
    lr_vocab_slot *table = lr_alloc(slots * sizeof table[0]);
    if (table == NULL)
        return LR_ENOMEM;
    for (size_t i = 0; i < slots; i++)
        table[i].id = -1;
    for (size_t i = 0; v->slots != NULL && i <= v->mask; i++) {
        if (v->slots[i].id < 0)
            continue;
        size_t k = v->slots[i].hash & (slots - 1);
        while (table[k].id >= 0)
            k = (k + 1) & (slots - 1);
        table[k] = v->slots[i];
    }
    lr_free(v->slots);
    v->slots = table;
    v->mask = slots - 1;
    return LR_OK;
}

/* The slot of the token that is prefix followed by rest, or the empty slot where it would go. */
static lr_vocab_slot *find(const lr_vocab *v, uint32_t hash, const char *prefix, size_t prefix_size, const char *rest,
                           size_t rest_size)
{
    size_t i = hash & v->mask;
    for (;; i = (i + 1) & v->mask) {
        lr_vocab_slot *s = &v->slots[i];
        if (s->id < 0)
            return s;
        if (s->hash == hash && s->size == prefix_size + rest_size &&
            memcmp(v->pool + s->offset, prefix, prefix_size) == 0 &&
            memcmp(v->pool + s->offset + prefix_size, rest, rest_size) == 0)
            return s;
    }
}

int lr_vocab_put(lr_vocab *v, const char *token, size_t size, int32_t id)
{
    int status = lr_vocab_reserve(v, v->count + 1);
    if (status == LR_OK)
        status = lr_reserve((void **)&v->pool, &v->pool_cap, v->pool_size + size + 1, 1);
    if (status == LR_OK)
        status = lr_reserve((void **)&v->by_id, &v->id_cap, (size_t)id + 1, sizeof v->by_id[0]);
    if (status != LR_OK)
        return status;
    if (v->pool_size + size + 1 > UINT32_MAX)
        return lr_fail(LR_EFORMAT, "the vocabulary has more than 4 GB of tokens");
    const uint32_t hash = fold(lr_hash_more(LR_HASH_START, token, size));
    lr_vocab_slot *slot = find(v, hash, "", 0, token, size);
    if (slot->id < 0) {
        *slot = (lr_vocab_slot){hash, (uint32_t)v->pool_size, (uint32_t)size, id};
        memcpy(v->pool + v->pool_size, token, size);
        v->pool[v->pool_size + size] = 0;
        v->pool_size += size + 1;
        v->count++;
    }
    slot->id = id;
    while (v->id_count <= (size_t)id)
        v->by_id[v->id_count++] = -1;
    v->by_id[id] = slot->offset;
    if (size > v->longest)
        v->longest = size;
    return LR_OK;
}

int32_t lr_vocab_get_hashed(const lr_vocab *v, uint64_t hash, const char *prefix, size_t prefix_size, const char *rest,
                            size_t rest_size)
{
    return v->slots == NULL ? -1 : find(v, fold(hash), prefix, prefix_size, rest, rest_size)->id;
}

int32_t lr_vocab_get(const lr_vocab *v, const char *token, size_t size)
{
    return lr_vocab_get_hashed(v, lr_hash_more(LR_HASH_START, token, size), "", 0, token, size);
}

const char *lr_vocab_token(const lr_vocab *v, int32_t id)
{
    return id < 0 || (size_t)id >= v->id_count || v->by_id[id] < 0 ? NULL : v->pool + v->by_id[id];
}

int lr_vocab_load(lr_vocab *v, const lr_place *at, const lr_json_node *model)
{
    const lr_json_node *entries = NULL;
    int status = lr_spec_object(at, model, "vocab", &entries);
    if (status != LR_OK)
        return status;
    const lr_place here = {at, "vocab", 0};
    const size_t count = lr_spec_length(entries);
    if (count == 0)
        return lr_spec_bad(&here, "no tokens");
    status = lr_vocab_reserve(v, count);
    for (size_t i = 0; i < count && status == LR_OK; i++) {
        const char *token;
        int32_t id = 0;
        const lr_json_node *value = lr_json_member(entries, (int64_t)i, &token);
        const lr_place place = {&here, token, 0};
        const size_t size = strlen(token);
        status = lr_spec_id(&place, value, &id);
        if (status == LR_OK && (size_t)id > FREE_IDS + 4 * count)
            status = lr_spec_unsupported(&place, "the id %d in a vocabulary of %zu tokens", (int)id, count);
        if (status == LR_OK && size > LR_TEXT_TOKEN_BYTES)
            status = lr_spec_unsupported(&place, "a token of %zu bytes; at most %d are supported", size,
                                         LR_TEXT_TOKEN_BYTES);
        if (status == LR_OK)
            status = lr_vocab_put(v, token, size, id);
    }
    return status;
}

void lr_vocab_free(lr_vocab *v)
{
    lr_free(v->slots);
    lr_free(v->pool);
    lr_free(v->by_id);
    *v = (lr_vocab){0};
}
