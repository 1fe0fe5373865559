/* json.h: what the C files of lorarun may use of json.c beyond lr.h. */
#ifndef LR_IO_JSON_H
#define LR_IO_JSON_H

#include "core/core.h"

/* Member number `index` in the order written; index < length. Constant time. */
const lr_json_node *lr_json_member(const lr_json_node *object, int64_t index, const char **key);

/* The decimal number that text, NUL-terminated, begins with. The point is a point whatever the user's locale. */
double lr_decimal_value(const char *text);

/* `size` bytes of text as a JSON string with its quotes; lr_free it. NULL: lr_fail was called and *status says what it
 * returned: LR_EINVAL where the text is not UTF-8, or LR_ENOMEM. */
char *lr_json_quote(const char *text, size_t size, int *status);

#endif
