// SPDX-License-Identifier: GPL-2.0-only
/* Devices as code of the kernel consumes them: those of the kernel by plain calls, all others through their files. */
#include "internal.h"

#define KERNEL "kernel/"

static struct consumer *open_kernel(const char *name, const struct ldm_lineage *upper)
{
	struct ldm_device *device = ldm_device_by_name(name);
	struct consumer *consumer;

	if (IS_ERR(device))
		return ERR_CAST(device);
	consumer = ldm_consumer_open(device, upper);
	put_device(&device->dev);
	return consumer;
}

static int open_into(struct ldm_handle *handle, const char *name, const struct ldm_lineage *upper)
{
	if (!strncmp(name, KERNEL, strlen(KERNEL))) {
		handle->consumer = open_kernel(name + strlen(KERNEL), upper);
		return PTR_ERR_OR_ZERO(handle->consumer);
	}
	handle->file = ldm_user_open(name);
	return PTR_ERR_OR_ZERO(handle->file);
}

int ldm_open_device(const char *name, struct ldm_consumer *upper, struct ldm_handle **opened)
{
	struct ldm_handle *handle = kzalloc(sizeof(*handle), GFP_KERNEL);
	int status;

	if (!handle)
		return -ENOMEM;
	status = open_into(handle, name, upper ? &to_consumer(upper)->lineage : NULL);
	if (status) {
		kfree(handle);
		return status;
	}
	*opened = handle;
	return 0;
}
EXPORT_SYMBOL_GPL(ldm_open_device);

void ldm_close_device(struct ldm_handle *handle)
{
	if (handle->consumer)
		ldm_consumer_close(handle->consumer);
	else
		ldm_user_close(handle->file);
	/* The last one may be in its completion handler in another thread. */
	wait_var_event(&handle->pending, !atomic_read(&handle->pending));
	kfree(handle);
}
EXPORT_SYMBOL_GPL(ldm_close_device);

void ldm_about_device(const struct ldm_handle *handle, struct ldm_about *about)
{
	if (handle->consumer)
		ldm_consumer_about(handle->consumer, about);
	else
		ldm_user_about(handle->file, about);
}
EXPORT_SYMBOL_GPL(ldm_about_device);

/* As ldm_dispatch(). */
static int send(struct ldm_handle *handle, struct request *request)
{
	return handle->consumer ? ldm_dispatch(handle->consumer, request) : ldm_user_send(handle->file, request);
}

static void wake(void *context, struct ldm_request *request, int status)
{
	complete(context);
}

/* Waits for a request that is under way, or cancels it when the caller is killed, or is interrupted where it may be. */
static int wait_for(struct request *request, struct completion *done, bool interruptible)
{
	int status = interruptible ? wait_for_completion_interruptible(done) : wait_for_completion_killable(done);

	if (!status)
		return request->public.status;
	ldm_cancel_request(&request->public);
	wait_for_completion(done);	/* whoever ended it has told so, or is about to */
	return request->public.status == -ECANCELED ? -EINTR : request->public.status;
}

/* Sends the request of a program, and waits. */
int ldm_send_and_wait(struct consumer *consumer, struct ldm_request *public)
{
	struct request *request = to_request(public);
	DECLARE_COMPLETION_ONSTACK(done);
	int status;

	request->completion_handler = wake;
	request->completion_context = &done;
	status = ldm_dispatch(consumer, request);
	return status == LDM_LATER ? wait_for(request, &done, true) : status;
}

static int send_and_wait(struct ldm_handle *handle, struct request *request)
{
	DECLARE_COMPLETION_ONSTACK(done);
	int status;

	request->completion_handler = wake;
	request->completion_context = &done;
	status = send(handle, request);
	return status == LDM_LATER ? wait_for(request, &done, false) : status;
}

int ldm_send_request(struct ldm_handle *handle, struct ldm_request *public,
		     ldm_completion_handler completion_handler, void *completion_context)
{
	struct request *request = to_request(public);
	int status;

	if (!completion_handler)
		return send_and_wait(handle, request);
	request->handle = handle;
	request->completion_handler = completion_handler;
	request->completion_context = completion_context;
	atomic_inc(&handle->pending);
	status = send(handle, request);
	if (status != LDM_LATER)
		ldm_ended(request);
	return 0;
}
EXPORT_SYMBOL_GPL(ldm_send_request);
