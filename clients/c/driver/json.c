#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *need(void *made) {
    if (!made) abort();
    return made;
}

void add_bytes(text *to, const char *data, size_t size) {
    if (to->room - to->size < size + 1) {
        while (to->room - to->size < size + 1) to->room = to->room ? 2 * to->room : 256;
        to->data = need(realloc(to->data, to->room));
    }
    memcpy(to->data + to->size, data, size);
    to->size += size;
    to->data[to->size] = 0;
}

void add(text *to, const char *format, ...) {
    char some[1024];
    va_list list;
    va_start(list, format);
    int size = vsnprintf(some, sizeof some, format, list);
    va_end(list);
    add_bytes(to, some, (size_t)size < sizeof some ? (size_t)size : sizeof some - 1);
}

void add_quoted(text *to, const char *data, size_t size) {
    add(to, "\"");
    for (size_t i = 0; i < size; i++) {
        unsigned char letter = (unsigned char)data[i];
        if (letter == '"' || letter == '\\')
            add(to, "\\%c", letter);
        else if (letter < 0x20)
            add(to, "\\u%04x", letter);
        else
            add_bytes(to, data + i, 1);
    }
    add(to, "\"");
}

void add_hex(text *to, const void *data, size_t size) {
    static const char DIGITS[] = "0123456789abcdef";
    const unsigned char *from = data;
    add(to, "\"");
    for (size_t i = 0; i < size; i++) {
        char two[2] = {DIGITS[from[i] >> 4], DIGITS[from[i] & 15]};
        add_bytes(to, two, 2);
    }
    add(to, "\"");
}

static void skip(const char **at) {
    while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r') ++*at;
}

static bool read_hex4(const char **at, unsigned *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, ++*at) {
        char c = **at;
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                                : 99;
        if (digit == 99) return false;
        *code = *code << 4 | digit;
    }
    return true;
}

static void add_letter(text *to, unsigned code) {
    char out[4];
    size_t size;
    if (code < 0x80) {
        out[0] = (char)code;
        size = 1;
    } else if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        size = 2;
    } else if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 63));
        out[2] = (char)(0x80 | (code & 63));
        size = 3;
    } else {
        out[0] = (char)(0xf0 | code >> 18);
        out[1] = (char)(0x80 | (code >> 12 & 63));
        out[2] = (char)(0x80 | (code >> 6 & 63));
        out[3] = (char)(0x80 | (code & 63));
        size = 4;
    }
    add_bytes(to, out, size);
}

static bool read_text(const char **at, text *into) {
    add_bytes(into, "", 0);
    if (*(*at)++ != '"') return false;
    while (**at != '"') {
        size_t plain = strcspn(*at, "\"\\");
        add_bytes(into, *at, plain);
        *at += plain;
        if (**at == '"') break;
        if (**at != '\\') return false;
        char c = (*at)[1];
        *at += 2;
        unsigned code, low;
        switch (c) {
        case 'n': add_letter(into, '\n'); break;
        case 't': add_letter(into, '\t'); break;
        case 'r': add_letter(into, '\r'); break;
        case 'b': add_letter(into, '\b'); break;
        case 'f': add_letter(into, '\f'); break;
        case 'u':
            if (!read_hex4(at, &code)) return false;
            if (code >= 0xd800 && code < 0xdc00 && (*at)[0] == '\\' && (*at)[1] == 'u') {
                *at += 2;
                if (!read_hex4(at, &low)) return false;
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            add_letter(into, code);
            break;
        case 0: return false;
        default: add_letter(into, (unsigned char)c); break;
        }
    }
    ++*at;
    return true;
}

static bool read_value(const char **at, json *into);

static bool read_parts(const char **at, json *into, char end) {
    json **last = &into->first;
    ++*at;
    skip(at);
    while (**at != end) {
        json *part = need(calloc(1, sizeof *part));
        *last = part;
        last = &part->next;
        skip(at);
        if (end == '}') {
            text name = {0};
            bool good = read_text(at, &name);
            part->name = name.data;
            skip(at);
            if (!good || *(*at)++ != ':') return false;
        }
        if (!read_value(at, part)) return false;
        skip(at);
        if (**at == ',')
            ++*at;
        else if (**at != end)
            return false;
    }
    ++*at;
    return true;
}

static bool read_value(const char **at, json *into) {
    text made = {0};
    char *end;
    skip(at);
    switch (**at) {
    case '{': into->kind = JSON_OBJECT; return read_parts(at, into, '}');
    case '[': into->kind = JSON_LIST; return read_parts(at, into, ']');
    case '"': {
        bool good = read_text(at, &made);
        into->kind = JSON_TEXT;
        into->text = made.data;
        into->size = made.size;
        return good;
    }
    case 't':
        into->kind = JSON_TRUE;
        *at += 4;
        return true;
    case 'f':
        into->kind = JSON_FALSE;
        *at += 5;
        return true;
    case 'n':
        into->kind = JSON_NULL;
        *at += 4;
        return true;
    default:
        into->kind = JSON_NUMBER;
        into->negative = **at == '-';
        if (into->negative) ++*at;
        if (**at < '0' || **at > '9') return false;
        into->number = strtoull(*at, &end, 10);
        *at = end;
        return true;
    }
}

json *json_read(const char *line) {
    json *made = need(calloc(1, sizeof *made));
    if (read_value(&line, made)) return made;
    json_free(made);
    return NULL;
}

void json_free(json *old) {
    while (old) {
        json *next = old->next;
        json_free(old->first);
        free(old->name);
        free(old->text);
        free(old);
        old = next;
    }
}

const json *json_get(const json *object, const char *name) {
    for (const json *each = object ? object->first : NULL; each; each = each->next) {
        if (each->name && strcmp(each->name, name) == 0) return each->kind == JSON_NULL ? NULL : each;
    }
    return NULL;
}

const char *json_text(const json *object, const char *name) {
    const json *found = json_get(object, name);
    return found && found->kind == JSON_TEXT ? found->text : NULL;
}

uint64_t json_number(const json *object, const char *name, uint64_t otherwise) {
    const json *found = json_get(object, name);
    return found && found->kind == JSON_NUMBER ? found->number : otherwise;
}

bool json_flag(const json *object, const char *name) {
    const json *found = json_get(object, name);
    return found && found->kind == JSON_TRUE;
}
