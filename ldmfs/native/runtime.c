// SPDX-License-Identifier: Apache-2.0
/* The functions of ldm.h that need the host, the handlers that the host calls, and the table of all that it calls. */
#include "runtime.h"

/* Bytes of a line of the log; what is longer is cut. */
#define LINE 1024

const struct ldm_host *ldm_host;

/* The section of a provider without parameters is not there. */
extern const struct ldm_param __start_ldm_params[] __attribute__((weak, visibility("hidden")));
extern const struct ldm_param __stop_ldm_params[] __attribute__((weak, visibility("hidden")));

static void init(const struct ldm_host *host)
{
	ldm_host = host;
}

static int start(void)
{
	return ldm_provider.start(&ldm_provider);
}

static void stop(void)
{
	if (ldm_provider.stop)
		ldm_provider.stop(&ldm_provider);
}

void ldm_log(enum ldm_level level, const char *format, ...)
{
	char line[LINE];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	ldm_host->log(level, line);
}

/* -- devices */

int ldm_create_device(struct ldm_provider *provider, const struct ldm_device_spec *spec, struct ldm_device **created)
{
	struct ldm_device *device = ldm_alloc(sizeof(*device));
	int status;

	if (!device)
		return -ENOMEM;
	device->spec = *spec;
	device->spec.name = device->spec.description = device->spec.takes = device->spec.gives = NULL;
	if (created)
		*created = device;
	status = ldm_host->create_device(device, spec);
	if (status)
		ldm_free(device);
	return status;
}

int ldm_destroy_device(struct ldm_device *device)
{
	int status = ldm_host->destroy_device(device);

	if (!status)
		ldm_free(device);
	return status;
}

/* -- their consumers */

static struct ldm_consumer *new_consumer(struct ldm_device *device, uint64_t id)
{
	struct ldm_consumer *consumer = ldm_alloc(sizeof(*consumer));

	if (consumer)
		*consumer = (struct ldm_consumer){ .id = id, .device = device, .context = device->spec.context };
	return consumer;
}

static int open(struct ldm_consumer *consumer)
{
	const struct ldm_device_spec *spec = &consumer->device->spec;

	return spec->open ? spec->open(consumer) : 0;
}

static void close(struct ldm_consumer *consumer)
{
	if (consumer->device->spec.close)
		consumer->device->spec.close(consumer);
}

static void free_consumer(struct ldm_consumer *consumer)
{
	ldm_free(consumer);
}

static int handle_request(struct ldm_consumer *consumer, struct ldm_request *request, bool marshalled)
{
	const struct ldm_device_spec *spec = &consumer->device->spec;
	int status = 0;

	if (marshalled)
		status = spec->unmarshal ? spec->unmarshal(consumer, request) : -EOPNOTSUPP;
	return status ? status : spec->request(consumer, request);
}

static int marshal(struct ldm_consumer *consumer, struct ldm_request *request)
{
	const struct ldm_device_spec *spec = &consumer->device->spec;

	return spec->marshal ? spec->marshal(consumer, request) : -EOPNOTSUPP;
}

static void cancel(struct ldm_consumer *consumer, struct ldm_request *request)
{
	if (consumer->device->spec.cancel)
		consumer->device->spec.cancel(consumer, request);
}

void ldm_complete_request(struct ldm_request *request, int status)
{
	ldm_host->complete_request(request, status);
}

/* -- consuming */

int ldm_open_device(const char *name, struct ldm_consumer *upper, struct ldm_handle **opened)
{
	struct ldm_handle *handle = ldm_alloc(sizeof(*handle));
	int status;

	if (!handle)
		return -ENOMEM;
	status = ldm_host->open_device(name, upper, handle, &handle->about);
	if (status) {
		ldm_free(handle);
		return status;
	}
	*opened = handle;
	return 0;
}

void ldm_close_device(struct ldm_handle *handle)
{
	ldm_host->close_device(handle);
	ldm_free(handle);
}

void ldm_about_device(const struct ldm_handle *handle, struct ldm_about *about)
{
	*about = handle->about;
}

int ldm_send_request(struct ldm_handle *handle, struct ldm_request *request,
		     ldm_completion_handler completion_handler, void *completion_context)
{
	bool first = ldm_mark_sent(request, completion_handler, completion_context);
	int status;

	if (!first) {
		ldm_error("a request was sent twice");
		abort();	/* nobody can say whose completion handler the end belongs to */
	}
	if (!completion_handler) {
		request->status = ldm_host->send_request(handle, request);
		return request->status;
	}
	status = ldm_host->send_soon(handle, request);
	if (status)
		ldm_end(request, status);
	return 0;
}

void ldm_cancel_request(struct ldm_request *request)
{
	ldm_host->cancel_request(request);
}

__attribute__((visibility("default"))) const struct ldm_runtime ldm_runtime = {
	.version = LDM_RUNTIME_VERSION,
	.provider = &ldm_provider,
	.params = __start_ldm_params,
	.params_end = __stop_ldm_params,
	.init = init,
	.start = start,
	.stop = stop,
	.new_consumer = new_consumer,
	.open = open,
	.close = close,
	.free_consumer = free_consumer,
	.request = handle_request,
	.marshal = marshal,
	.cancel = cancel,
	.end = ldm_end,
	.new_request = ldm_alloc_request,
	.free_request = ldm_free_request,
	.fill = ldm_fill_part,
	.lend = ldm_lend,
	.lender = ldm_lender,
	.lend_room = ldm_lend_room,
	.parent = ldm_parent,
	.inherits_input = ldm_inherits_input,
};
