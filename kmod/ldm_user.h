/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What ldm.h stands on in user space: entry of a shared object, its parameters, logging, memory, locks, timers.
 *
 * The shared object is made of the provider's source and the container's run time, which defines the functions that are
 * declared here and in ldm.h, and finds the provider as `ldm_provider` and its parameters in the section `ldm_params`.
 */
#ifndef LDM_USER_H
#define LDM_USER_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct ldm_provider {
	const char *name;
	const char *description;
	int (*start)(struct ldm_provider *provider);
	void (*stop)(struct ldm_provider *provider);
	void *context;			/* the provider's own */
	void *world;			/* the run time's own */
};

/* LDM_PROVIDER(name, start, stop, description): what the shared object is; see ldm_kernel.h. */
#define LDM_PROVIDER(id, start_handler, stop_handler, about)		\
	struct ldm_provider ldm_provider = {				\
		.name = #id,						\
		.description = about,					\
		.start = start_handler,					\
		.stop = stop_handler,					\
	}

extern struct ldm_provider ldm_provider;

/* LDM_PARAM(variable, type, description): a static variable that is set before `start`; the types of ldm_kernel.h. */
#define LDM_PARAM(variable, kind, about)				\
	static const struct ldm_param ldm_param_##variable		\
	__attribute__((used, section("ldm_params"), aligned(8))) = {	\
		.name = #variable,					\
		.type = LDM_PARAM_##kind,				\
		.value = { .kind##_value = &variable },			\
		.description = about,					\
	}

enum ldm_param_type { LDM_PARAM_bool, LDM_PARAM_uint, LDM_PARAM_size, LDM_PARAM_string };

struct ldm_param {
	const char *name;
	const char *description;
	enum ldm_param_type type;
	union {
		bool *bool_value;
		unsigned int *uint_value;
		uint64_t *size_value;
		const char **string_value;
	} value;
};

/* One line each, without a line end. */
enum ldm_level { LDM_ERROR, LDM_WARN, LDM_INFO };

void ldm_log(enum ldm_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define ldm_error(...) ldm_log(LDM_ERROR, __VA_ARGS__)
#define ldm_warn(...) ldm_log(LDM_WARN, __VA_ARGS__)
#define ldm_info(...) ldm_log(LDM_INFO, __VA_ARGS__)

/* Memory that is all zero, NULL when there is none. */
static inline void *ldm_alloc(size_t size)
{
	return calloc(1, size ? size : 1);
}

static inline void ldm_free(const void *memory)
{
	free((void *)memory);
}

/* A lock that its holder may sleep under. */
struct ldm_mutex {
	pthread_mutex_t mutex;
};

static inline void ldm_init_mutex(struct ldm_mutex *lock)
{
	pthread_mutex_init(&lock->mutex, NULL);
}

static inline void ldm_lock(struct ldm_mutex *lock)
{
	pthread_mutex_lock(&lock->mutex);
}

static inline void ldm_unlock(struct ldm_mutex *lock)
{
	pthread_mutex_unlock(&lock->mutex);
}

/* Calls a function once, some time after it was started, in a thread that may sleep. */
struct ldm_timer {
	void (*function)(void *context);
	void *context;
	void *world;			/* the run time's own */
};

void ldm_init_timer(struct ldm_timer *timer, void (*function)(void *context), void *context);
void ldm_start_timer(struct ldm_timer *timer, unsigned int milliseconds);	/* once more: from now on */
void ldm_stop_timer(struct ldm_timer *timer);	/* waits for the function; neither under its locks nor in itself */

static inline uint64_t ldm_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

#endif
