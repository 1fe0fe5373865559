/* pretokenizer.c: the pre-tokenizers of a tokenizer.json, read into a chain of steps that split normalised text into words. How
 * a step cuts the text is in pretokenizer_steps.c. */
#include "text/text.h"
#include <string.h>

static int add_class(lr_pretokenizer *p, int class, lr_behavior behavior)
{
    lr_pretokenizer_step *s = lr_pretokenizer_add(p, lr_split_class, behavior);
    if (s == NULL)
        return LR_ENOMEM;
    s->class = class;
    return LR_OK;
}

static int load_behavior(const lr_place *at, const lr_json_node *spec, bool required, lr_behavior *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    const int status = lr_spec_string(at, spec, "behavior", required, &name, NULL);
    if (status != LR_OK || name == NULL)
        return status;
    for (size_t i = 0; i < LR_COUNT_OF(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (lr_behavior)i;
            return LR_OK;
        }
    return lr_spec_unsupported(&(lr_place){at, "behavior", 0}, "the behavior \"%.60s\" is not supported", name);
}

static int load_split(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    bool is_regex = false, invert = false;
    const char *pattern = NULL;
    size_t size = 0;
    lr_behavior how = LR_ISOLATED;
    int status = load_behavior(at, spec, true, &how);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "invert", true, &invert);
    if (status == LR_OK)
        status = lr_spec_pattern(at, spec, &is_regex, &pattern, &size);
    if (status != LR_OK)
        return status;
    lr_pretokenizer_step *s = lr_pretokenizer_add(p, is_regex ? lr_split_regex : lr_split_string, how);
    if (s == NULL)
        return LR_ENOMEM;
    s->invert = invert;
    if (is_regex)
        return lr_regex_compile(&s->regex, at, pattern, size);
    s->string = lr_strndup(pattern, size);
    s->string_size = size;
    return s->string == NULL ? LR_ENOMEM : LR_OK;
}

static int load_byte_level(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    bool prefix_space = false, use_regex = true;
    int status = lr_spec_bool(at, spec, "add_prefix_space", true, &prefix_space);
    if (status == LR_OK)
        status = lr_spec_bool(at, spec, "use_regex", false, &use_regex);
    if (status != LR_OK)
        return status;
    p->byte_level = true;
    if (prefix_space && lr_pretokenizer_add(p, lr_split_prefix_space, LR_ISOLATED) == NULL)
        return LR_ENOMEM;
    if (!use_regex)
        return LR_OK;
    lr_pretokenizer_step *s = lr_pretokenizer_add(p, lr_split_regex, LR_ISOLATED);
    return s == NULL ? LR_ENOMEM : lr_regex_compile(&s->regex, at, gpt2, sizeof gpt2 - 1);
}

static int load_digits(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    bool individual = false;
    const int status = lr_spec_bool(at, spec, "individual_digits", true, &individual);
    return status == LR_OK ? add_class(p, LR_CHAR_NUMERIC, individual ? LR_ISOLATED : LR_CONTIGUOUS) : status;
}

static int load_whitespace_split(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    (void)at, (void)spec;
    return add_class(p, LR_CHAR_SPACE, LR_REMOVED);
}

static int load_whitespace(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    (void)at, (void)spec;
    return lr_pretokenizer_add(p, lr_split_word_runs, LR_ISOLATED) == NULL ? LR_ENOMEM : LR_OK;
}

static int load_bert(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    (void)at, (void)spec;
    const int status = add_class(p, LR_CHAR_SPACE, LR_REMOVED);
    return status == LR_OK ? add_class(p, LR_CHAR_PUNCTUATION, LR_ISOLATED) : status;
}

static int load_punctuation(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    lr_behavior how = LR_ISOLATED;
    const int status = load_behavior(at, spec, false, &how);
    return status == LR_OK ? add_class(p, LR_CHAR_PUNCTUATION, how) : status;
}

/* ---- the kinds -------------------------------------------------------------------------------------------------------- */
static const lr_spec_kind sequence = {.type = "Sequence"};
static const lr_pretokenizer_kind byte_level = {{.type = "ByteLevel"}, load_byte_level},
                                  split = {{.type = "Split"}, load_split}, digits = {{.type = "Digits"}, load_digits},
                                  whitespace_split = {{.type = "WhitespaceSplit"}, load_whitespace_split},
                                  whitespace = {{.type = "Whitespace"}, load_whitespace},
                                  bert = {{.type = "BertPreTokenizer"}, load_bert},
                                  punctuation = {{.type = "Punctuation"}, load_punctuation};

/* Add a kind here. */
static const lr_spec_kind *const kinds[] = {&sequence,    &byte_level.kind,       &split.kind,
                                            &digits.kind, &whitespace_split.kind, &whitespace.kind,
                                            &bert.kind,   &punctuation.kind};

static int load(void *pretokenizer, const lr_place *at, const lr_json_node *spec)
{
    lr_pretokenizer *p = pretokenizer;
    const lr_spec_kind *kind = NULL;
    int status = lr_spec_depth(at);
    if (status == LR_OK)
        status = lr_spec_kind_of(at, spec, kinds, LR_COUNT_OF(kinds), "pre-tokenizer", &kind);
    if (status != LR_OK)
        return status;
    if (kind == &sequence)
        return lr_spec_each(at, spec, "pretokenizers", load, p);
    if (p->count + 2 > LR_TEXT_STEPS) /* each kind adds two steps at most; they run within each other, on the stack */
        return lr_spec_unsupported(at, "more than %d pre-tokenizers are not supported", LR_TEXT_STEPS);
    if (p->byte_level)
        return lr_spec_unsupported(at, "the pre-tokenizer \"%.60s\" after ByteLevel is not supported", kind->type);
    return ((const lr_pretokenizer_kind *)kind)->load(p, at, spec);
}

int lr_pretokenizer_load(lr_pretokenizer *p, const lr_place *at, const lr_json_node *spec)
{
    return load(p, at, spec);
}

void lr_pretokenizer_free(lr_pretokenizer *p)
{
    for (size_t i = 0; i < p->count; i++) {
        lr_free(p->steps[i].string);
        lr_regex_free(&p->steps[i].regex);
    }
    lr_free(p->steps);
    *p = (lr_pretokenizer){0};
}
