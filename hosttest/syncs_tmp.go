package hosttest

var syncPromises []Promise
