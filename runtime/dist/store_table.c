/* store_table.c: the values by key that the server of a store keeps: a chained hash table, used by one thread. */
#include "core/hash.h"
#include "dist/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    struct entry *next;
    uint64_t hash;
    lr_store_value *value;
    size_t size;
    char key[];
} entry;

struct lr_store_table {
    entry **slots; /* a power of two of them */
    size_t slot_count, used;
};

/* ---- values ------------------------------------------------------------------------------------------------------ */
lr_store_value *lr_store_value_new(const void *bytes, size_t size)
{
    lr_store_value *v = lr_alloc(sizeof *v + size);
    if (v == NULL)
        return NULL;
    v->holders = 1;
    v->size = (uint32_t)size;
    if (bytes != NULL)
        memcpy(v->bytes, bytes, size);
    return v;
}

lr_store_value *lr_store_value_hold(lr_store_value *v)
{
    v->holders++;
    return v;
}

void lr_store_value_drop(lr_store_value *v)
{
    if (v != NULL && --v->holders == 0)
        lr_free(v);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */
static uint64_t hash_of(const char *key, size_t size)
{
    return lr_hash_more(LR_HASH_START, key, size);
}

lr_store_table *lr_store_table_new(void)
{
    lr_store_table *t = lr_calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->slot_count = 64;
    t->slots = lr_calloc(t->slot_count, sizeof(entry *));
    if (t->slots != NULL)
        return t;
    lr_free(t);
    return NULL;
}

static entry *find(const lr_store_table *t, const char *key, size_t size, uint64_t hash)
{
    entry *e = t->slots[hash & (t->slot_count - 1)];
    while (e != NULL && (e->hash != hash || e->size != size || memcmp(e->key, key, size) != 0))
        e = e->next;
    return e;
}

lr_store_value *lr_store_table_get(const lr_store_table *t, const char *key, size_t size)
{
    const entry *e = find(t, key, size, hash_of(key, size));
    return e != NULL ? e->value : NULL;
}

/* Double the slots. Without memory for them the chains grow instead. */
static void grow(lr_store_table *t)
{
    const size_t count = 2 * t->slot_count;
    entry **slots = lr_calloc(count, sizeof(entry *));
    if (slots == NULL)
        return;
    for (size_t i = 0; i < t->slot_count; i++)
        for (entry *e = t->slots[i], *next; e != NULL; e = next) {
            next = e->next;
            e->next = slots[e->hash & (count - 1)];
            slots[e->hash & (count - 1)] = e;
        }
    lr_free(t->slots);
    t->slots = slots;
    t->slot_count = count;
}

int lr_store_table_set(lr_store_table *t, const char *key, size_t size, lr_store_value *v)
{
    const uint64_t hash = hash_of(key, size);
    entry *e = find(t, key, size, hash);
    if (e == NULL) {
        e = lr_alloc(sizeof *e + size);
        if (e == NULL)
            return LR_ENOMEM;
        *e = (entry){.hash = hash, .size = size};
        memcpy(e->key, key, size);
        if (t->used >= t->slot_count)
            grow(t);
        entry **slot = &t->slots[hash & (t->slot_count - 1)];
        e->next = *slot;
        *slot = e;
        t->used++;
    }
    lr_store_value_hold(v);
    lr_store_value_drop(e->value);
    e->value = v;
    return LR_OK;
}

/* Is the whole value a decimal integer that fits? */
static bool number_of(const lr_store_value *v, int64_t *out)
{
    char text[32], canonical[32];
    if (v->size >= sizeof text)
        return false;
    memcpy(text, v->bytes, v->size);
    text[v->size] = 0;
    *out = strtoll(text, NULL, 10);
    const int size = snprintf(canonical, sizeof canonical, "%lld", (long long)*out);
    return v->size == (uint32_t)size && memcmp(v->bytes, canonical, v->size) == 0;
}

int lr_store_table_add(lr_store_table *t, const char *key, size_t size, int64_t amount, int64_t *sum)
{
    const lr_store_value *old = lr_store_table_get(t, key, size);
    int64_t total = 0;
    if (old != NULL && !number_of(old, &total))
        return lr_fail(LR_EINVAL, "the value of key '%.*s' is not a number to add to", (int)size, key);
    if (__builtin_add_overflow(total, amount, &total))
        return lr_fail(LR_EINVAL, "the sum of key '%.*s' and %lld is beyond 64 bits", (int)size, key,
                       (long long)amount);
    char text[32];
    lr_store_value *v = lr_store_value_new(text, (size_t)snprintf(text, sizeof text, "%lld", (long long)total));
    if (v == NULL)
        return LR_ENOMEM;
    const int status = lr_store_table_set(t, key, size, v);
    lr_store_value_drop(v);
    if (status == LR_OK)
        *sum = total;
    return status;
}

void lr_store_table_free(lr_store_table *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->slot_count; i++)
        for (entry *e = t->slots[i], *next; e != NULL; e = next) {
            next = e->next;
            lr_store_value_drop(e->value);
            lr_free(e);
        }
    lr_free(t->slots);
    lr_free(t);
}
