/* json.h: what the C files of lorarun may use of json.c beyond lr.h. */
#ifndef LR_IO_JSON_H
#define LR_IO_JSON_H

#include "core/core.h"

/* Let jansson allocate through lr_alloc. lr_json_parse does it by itself; who calls jansson directly calls this first.
 */
void lr_json_use_allocator(void);
/* text as a JSON string with its quotes; lr_free it. NULL: lr_fail was called (LR_EINVAL where it is not UTF-8),
 * *status says. */
char *lr_json_quote(const char *text, int *status);

#endif
