/* libraries.c: the versions of the libraries that this program runs with, for bug reports. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/core.h"
#include <dnnl.h>
#include <jansson.h>
#include <pcre2.h>
#include <sodium.h>
#include <stdio.h>
#include <utf8proc.h>
#include <yaml.h>

int lr_library_versions(char *buf, size_t cap)
{
    char pcre2[64] = "";
    const dnnl_version_t *dnnl = dnnl_version();
    if (pcre2_config(PCRE2_CONFIG_VERSION, NULL) <= (int)sizeof pcre2)
        (void)pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    const int n = snprintf(buf, cap, "oneDNN %d.%d.%d, libsodium %s, jansson %s, PCRE2 %s, libyaml %s, utf8proc %s",
                           dnnl->major, dnnl->minor, dnnl->patch, sodium_version_string(), jansson_version_str(), pcre2,
                           yaml_get_version_string(), utf8proc_version());
    return n < (int)cap ? LR_OK : lr_fail(LR_EINVAL, "versions: %d bytes, and room for %zu", n + 1, cap);
}
