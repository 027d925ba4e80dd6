/* As much JSON as a driver needs: reading a line into a tree, and writing text. */
#ifndef DRIVER_JSON_H
#define DRIVER_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_TEXT, JSON_LIST, JSON_OBJECT } json_kind;

typedef struct json json;
struct json {
    json_kind kind;
    char *name; /* of a member of an object */
    char *text;
    size_t size;
    bool negative;
    uint64_t number; /* whole numbers only */
    json *first, *next;
};

/* NULL where it is not JSON. */
json *json_read(const char *line);
void json_free(json *old);
/* NULL: there is none, or it is null. */
const json *json_get(const json *object, const char *name);
const char *json_text(const json *object, const char *name);
uint64_t json_number(const json *object, const char *name, uint64_t otherwise);
bool json_flag(const json *object, const char *name);

/* Text that grows. */
typedef struct {
    char *data;
    size_t size, room;
} text;

void add(text *to, const char *format, ...) __attribute__((__format__(__printf__, 2, 3)));
void add_bytes(text *to, const char *data, size_t size);
void add_quoted(text *to, const char *data, size_t size);
void add_hex(text *to, const void *data, size_t size);

#endif
