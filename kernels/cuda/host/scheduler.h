/* scheduler.h: what the parts of the host half share about the block that runs. See scheduler.cpp. */
#ifndef LR_SCHEDULER_H
#define LR_SCHEDULER_H

#include "cuda/host/simt_host.h"

namespace simt
{

/* When the running thread does something: accesses of two threads are ordered where a barrier lies between (another epoch), or,
 * within a warp, a __syncwarp of both. */
struct moment {
    int thread;
    uint64_t epoch; /* barriers passed since the program began; a block begins with a new one */
    uint64_t sync;  /* number of the last __syncwarp that the thread took part in */
};
moment now();

void shadow_begin_block(uint64_t epoch, size_t dynamic_bytes);

} // namespace simt

#endif
