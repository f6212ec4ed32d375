package host

import (
	synctypes "github.com/matrix-org/dendrite/syncapi/types"
	userapi "github.com/matrix-org/dendrite/userapi/api"
)

// tellKeyCounts does what the host's DeviceOTKCounts does (syncapi/internal/keychange.go), which is out of reach.
func tellKeyCounts(response *synctypes.Response, counted *userapi.QueryOneTimeKeysResponse) {
	response.DeviceListsOTKCount = counted.Count.KeyCount
}
