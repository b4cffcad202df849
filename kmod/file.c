// SPDX-License-Identifier: GPL-2.0-only
/* The character devices: an open file is a consumer. */
#include <linux/fs.h>

#include "internal.h"

static int open(struct inode *inode, struct file *file)
{
	struct ldm_device *device = ldm_device_by_minor(iminor(inode));
	const struct file_operations *fops;
	struct consumer *consumer;
	bool block;
	int status;

	if (IS_ERR(device))
		return PTR_ERR(device);
	block = device->spec.kind == LDM_BLOCK;
	consumer = ldm_consumer_open(device, NULL);
	put_device(&device->dev);
	if (IS_ERR(consumer))
		return PTR_ERR(consumer);
	status = block ? ldm_block_open(file, consumer) : ldm_message_open(file, consumer);
	if (status) {
		ldm_consumer_close(consumer);
		return status;
	}
	fops = block ? &ldm_block_fops : &ldm_message_fops;
	replace_fops(file, fops_get(fops));
	return 0;
}

const struct file_operations ldm_fops = {
	.owner = THIS_MODULE,
	.open = open,
};
