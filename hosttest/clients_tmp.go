package hosttest

var clientPromises []Promise
