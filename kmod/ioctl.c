// SPDX-License-Identifier: GPL-2.0-only
/* A whole request in one call, and what was opened: see ldm_ioctl.h.  Nothing that a program says is believed. */
#include <linux/compat.h>
#include <linux/uaccess.h>

#include "internal.h"

static_assert(sizeof(struct ldm_call) == 96);
static_assert(sizeof(struct ldm_about) == 24);

static int check(const struct ldm_call *call, const struct file *file)
{
	if (call->type < LDM_READ || call->type > LDM_NON_STANDARD || call->offset < 0 || call->length < 0 ||
	    memchr_inv(call->reserved, 0, sizeof(call->reserved)))
		return -EINVAL;
	if (call->input_size > LDM_MAX_DATA || call->input_metadata_size > LDM_MAX_METADATA)
		return -EMSGSIZE;
	if (!(file->f_mode & (call->type == LDM_READ ? FMODE_READ : FMODE_WRITE)))
		return -EBADF;
	return 0;
}

static int copy_in(struct ldm_request *request, struct ldm_data *part, u64 address, u64 size)
{
	if (!size)
		return 0;
	if (!ldm_resize(request, part, size))
		return -ENOMEM;
	return copy_from_user(part->data, u64_to_user_ptr(address), size) ? -EFAULT : 0;
}

/* Copies a part of the reply to room of `*size` bytes, which is then its size. */
static int copy_out(const struct ldm_data *part, u64 address, u64 *size)
{
	u64 room = *size;

	*size = part->size;
	if (part->size > room)
		return -EMSGSIZE;
	return part->size && copy_to_user(u64_to_user_ptr(address), part->data, part->size) ? -EFAULT : 0;
}

static int reply(const struct ldm_request *request, struct ldm_call *call, struct ldm_call __user *from)
{
	int data = copy_out(&request->output, call->output, &call->output_size);
	int metadata = copy_out(&request->output_metadata, call->output_metadata, &call->output_metadata_size);

	if (put_user(call->output_size, &from->output_size) ||
	    put_user(call->output_metadata_size, &from->output_metadata_size))
		return -EFAULT;
	return data ? data : metadata;
}

static int send(struct consumer *consumer, struct file *file, struct ldm_call __user *from)
{
	struct ldm_request *request;
	struct ldm_call call;
	int status;

	if (copy_from_user(&call, from, sizeof(call)))
		return -EFAULT;
	status = check(&call, file);
	if (status)
		return status;
	request = ldm_alloc_request(LDM_FILE_BLOCKS, call.type);
	if (!request)
		return -ENOMEM;
	request->offset = call.offset;
	request->length = call.length;
	to_request(request)->marshalled = call.type == LDM_NON_STANDARD;
	to_request(request)->call = call.id;
	status = copy_in(request, &request->input, call.input, call.input_size);
	if (!status)
		status = copy_in(request, &request->input_metadata, call.input_metadata, call.input_metadata_size);
	if (!status)
		status = ldm_send_and_wait(consumer, request);
	if (!status)
		status = reply(request, &call, from);
	ldm_free_request(request);
	return status;
}

static int cancel(struct consumer *consumer, u64 __user *from)
{
	u64 call;

	if (get_user(call, from))
		return -EFAULT;
	if (!call)
		return -EINVAL;
	return ldm_consumer_cancel(consumer, call) ? 0 : -ENOENT;
}

long ldm_ioctl(struct consumer *consumer, struct file *file, unsigned int command, unsigned long argument)
{
	struct ldm_about about;

	switch (command) {
	case LDM_IOC_SEND:
		return send(consumer, file, (struct ldm_call __user *)argument);
	case LDM_IOC_ABOUT:
		ldm_consumer_about(consumer, &about);
		return copy_to_user((void __user *)argument, &about, sizeof(about)) ? -EFAULT : 0;
	case LDM_IOC_CANCEL:
		return cancel(consumer, (u64 __user *)argument);
	default:
		return -ENOTTY;
	}
}
