/* hash.h: hashes for tables that are filled from files.
 *
 * The author of a file who knows a table's hash can choose keys that all collide, which makes filling the table quadratic. So
 * the hash has a secret, drawn again in every process. Only the places in a table may depend on it: no result, no order, no file. */
#ifndef LR_HASH_H
#define LR_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct lr_hash_key {
    uint64_t start, factor;
} lr_hash_key;
extern lr_hash_key lr_hash_secret; /* set before main */

/* The halves of the 128-bit product with the secret factor, folded into one. */
static inline uint64_t lr_hash_mix(uint64_t x)
{
    const unsigned __int128 product = (unsigned __int128)x * lr_hash_secret.factor;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A string can be hashed piece by piece, from LR_HASH_START; the result does not depend on how it is cut. */
#define LR_HASH_START (lr_hash_secret.start)
static inline uint64_t lr_hash_more(uint64_t hash, const char *s, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = lr_hash_mix(hash ^ (unsigned char)s[i]);
    return hash;
}

#endif
