/* balance.h: dividing work among the ranks, for the loader. */
#ifndef LR_DATA_BALANCE_H
#define LR_DATA_BALANCE_H

#include "core/core.h"

/* lr_balance without allocating: loads[world] gets the sum of each rank's weights, heap[n] is scratch. */
void lr_balance_into(int64_t n, const int64_t *weights, int world, int32_t *owner, int64_t *loads, int64_t *heap);

#endif
