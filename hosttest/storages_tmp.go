package hosttest

var storagePromises []Promise
