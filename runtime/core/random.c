/* random.c: randomness without state. Every draw is a pure function of its purpose, step and position, so a resumed run
 * needs no saved generator, and all ranks draw the same. */
#include "core/core.h"
#include "core/philox.h"

void lr_random(uint64_t seed, uint32_t purpose, uint32_t step, uint64_t position, uint32_t out[4])
{
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), step, purpose};
    lr_philox4x32((uint32_t)seed, (uint32_t)(seed >> 32), c);
    for (int i = 0; i < 4; i++)
        out[i] = c[i];
}
