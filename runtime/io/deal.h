/* deal.h: who gets which part of the work, for the loader. */
#ifndef LR_IO_DEAL_H
#define LR_IO_DEAL_H

#include "core/core.h"

/* lr_deal without allocating: loads[world] gets the sum of each rank's weights, heap[n] is scratch. */
void lr_deal_into(int64_t n, const int64_t *weights, int world, int32_t *owner, int64_t *loads, int64_t *heap);

#endif
