package hosttest

var deletionPromises []Promise
