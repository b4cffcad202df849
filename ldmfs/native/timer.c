// SPDX-License-Identifier: Apache-2.0
/* Timers: each has a thread, from its first start until it is stopped. */
#include <signal.h>

#include "runtime.h"

struct clock {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool running, ending;		/* this and the next: under `lock` */
	struct timespec due;
	void (*function)(void *context);
	void *context;
};

static pthread_mutex_t worlds = PTHREAD_MUTEX_INITIALIZER;	/* guards `world` of all timers */

/* Waits until it is time, with the lock held; false when the timer is stopped. */
static bool wait_for_time(struct clock *clock)
{
	struct timespec due;

	while (!clock->ending) {
		if (!clock->running) {
			pthread_cond_wait(&clock->changed, &clock->lock);
			continue;
		}
		due = clock->due;
		if (pthread_cond_timedwait(&clock->changed, &clock->lock, &due) != ETIMEDOUT)
			continue;
		if (clock->running && due.tv_sec == clock->due.tv_sec && due.tv_nsec == clock->due.tv_nsec)
			return true;	/* and was not started once more */
	}
	return false;
}

static void *run(void *argument)
{
	struct clock *clock = argument;

	pthread_mutex_lock(&clock->lock);
	while (wait_for_time(clock)) {
		clock->running = false;
		pthread_mutex_unlock(&clock->lock);
		clock->function(clock->context);
		pthread_mutex_lock(&clock->lock);
	}
	pthread_mutex_unlock(&clock->lock);
	return NULL;
}

/* Starts the thread without any signal: they are the host's. */
static int start_thread(struct clock *clock)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&clock->thread, NULL, run, clock);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

static struct clock *new_clock(const struct ldm_timer *timer)
{
	struct clock *clock = ldm_alloc(sizeof(*clock));
	pthread_condattr_t monotonic;

	if (!clock)
		return NULL;
	clock->function = timer->function;
	clock->context = timer->context;
	pthread_mutex_init(&clock->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&clock->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	if (!start_thread(clock))
		return clock;
	ldm_free(clock);
	return NULL;
}

static struct timespec from_now(unsigned int milliseconds)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	time.tv_sec += milliseconds / 1000;
	time.tv_nsec += milliseconds % 1000 * 1000000L;
	if (time.tv_nsec >= 1000000000L) {
		time.tv_nsec -= 1000000000L;
		time.tv_sec++;
	}
	return time;
}

void ldm_init_timer(struct ldm_timer *timer, void (*function)(void *context), void *context)
{
	*timer = (struct ldm_timer){ .function = function, .context = context };
}

void ldm_start_timer(struct ldm_timer *timer, unsigned int milliseconds)
{
	struct clock *clock;

	pthread_mutex_lock(&worlds);
	if (!timer->world)
		timer->world = new_clock(timer);
	clock = timer->world;
	if (clock) {
		pthread_mutex_lock(&clock->lock);
		clock->running = true;
		clock->due = from_now(milliseconds);
		pthread_cond_signal(&clock->changed);
		pthread_mutex_unlock(&clock->lock);
	}
	pthread_mutex_unlock(&worlds);
	if (clock)
		return;
	ldm_error("there is no thread for a timer");
	abort();	/* what waits for the timer would wait for ever */
}

void ldm_stop_timer(struct ldm_timer *timer)
{
	struct clock *clock;

	pthread_mutex_lock(&worlds);
	clock = timer->world;
	if (clock) {
		pthread_mutex_lock(&clock->lock);
		clock->ending = true;
		pthread_cond_signal(&clock->changed);
		pthread_mutex_unlock(&clock->lock);
	}
	pthread_mutex_unlock(&worlds);
	if (!clock)
		return;
	pthread_join(clock->thread, NULL);
	pthread_mutex_lock(&worlds);
	timer->world = NULL;	/* not before: its function may start it once more */
	pthread_mutex_unlock(&worlds);
	pthread_cond_destroy(&clock->changed);
	pthread_mutex_destroy(&clock->lock);
	ldm_free(clock);
}
