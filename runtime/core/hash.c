/* hash.c: the secret of hash.h. */
#include "core/hash.h"
#include <sys/random.h>
#include <time.h>

lr_hash_key lr_hash_secret;

__attribute__((constructor)) static void draw_secret(void)
{
    if (getrandom(&lr_hash_secret, sizeof lr_hash_secret, GRND_NONBLOCK) != (ssize_t)sizeof lr_hash_secret) {
        struct timespec
            now; /* the machine has only just started, or the kernel refuses: the time is better than nothing */
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        lr_hash_secret.start = (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)(uintptr_t)&now;
        lr_hash_secret.factor =
            ((uint64_t)(uintptr_t)&lr_hash_secret ^ (uint64_t)now.tv_nsec << 20) * 0xBF58476D1CE4E5B9u;
    }
    lr_hash_secret.factor |= 1; /* never 0 */
}
